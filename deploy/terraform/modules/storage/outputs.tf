output "bucket" {
  description = "Name of the bucket."
  value       = aws_s3_bucket.this.id
}

output "arn" {
  description = "ARN of the bucket."
  value       = aws_s3_bucket.this.arn
}

output "folders" {
  description = "Prefixes of the archive, of releases, and of SageMaker's output."
  value       = { archive = "archive", releases = "releases", training = "training" }
}
