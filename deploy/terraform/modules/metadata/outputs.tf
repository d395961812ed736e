output "address" {
  description = "Host name of the database `mlflow`; port 5432, TLS."
  value       = aws_db_instance.this.address
}

output "identifier" {
  description = "Name of the instance."
  value       = aws_db_instance.this.identifier
}

output "secret_arn" {
  description = "ARN of the secret with user and password, in Secrets Manager."
  value       = aws_db_instance.this.master_user_secret[0].secret_arn
}
