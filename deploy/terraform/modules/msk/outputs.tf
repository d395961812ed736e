output "arn" {
  description = "ARN of the cluster."
  value       = aws_msk_cluster.this.arn
}

output "name" {
  description = "Name of the cluster."
  value       = aws_msk_cluster.this.cluster_name
}

output "uuid" {
  description = "Id of the cluster, a part of the ARNs of its topics and groups."
  value       = aws_msk_cluster.this.cluster_uuid
}

output "bootstrap" {
  description = "Addresses for IAM over TLS."
  value       = aws_msk_cluster.this.bootstrap_brokers_sasl_iam
}

output "broker" {
  description = "Settings of the brokers."
  value       = local.broker
}
