output "address" {
  description = "Host name of the primary; port 6379, TLS."
  value       = aws_elasticache_replication_group.this.primary_endpoint_address
}

output "user" {
  description = "The user's id and name, whose password the runbook sets."
  value       = aws_elasticache_user.this.user_id
}

output "group" {
  description = "Id of the replication group."
  value       = aws_elasticache_replication_group.this.id
}

output "access" {
  description = "Keys and commands of the user."
  value       = local.access
}
