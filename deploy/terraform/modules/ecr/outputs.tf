output "registry" {
  description = "Host name of the registry."
  value       = split("/", values(aws_ecr_repository.this)[0].repository_url)[0]
}

output "arns" {
  description = "ARNs of the repositories, by name."
  value       = { for name, repository in aws_ecr_repository.this : name => repository.arn }
}
