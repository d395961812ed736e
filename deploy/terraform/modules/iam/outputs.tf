output "role_arns" {
  description = "ARNs of the roles of worker, ranking, encoder and train."
  value       = { for component, role in aws_iam_role.component : component => role.arn }
}

output "trainer_role_arn" {
  description = "ARN of the role of SageMaker's training jobs, for `riffle launch sagemaker --role`."
  value       = aws_iam_role.trainer.arn
}

output "client_policy_arn" {
  description = "ARN of the policy for programs that use Riffle over Kafka."
  value       = aws_iam_policy.client.arn
}

output "launcher_policy_arn" {
  description = "ARN of the policy for whoever runs `riffle launch sagemaker`."
  value       = aws_iam_policy.launcher.arn
}

output "collector_role_arn" {
  description = "ARN of the role of the collector of traces."
  value       = aws_iam_role.agent["collector"].arn
}

output "cloudwatch_role_arn" {
  description = "ARN of the role of CloudWatch's agent."
  value       = aws_iam_role.agent["cloudwatch"].arn
}

output "policies" {
  description = "Policies as JSON, by component."
  value       = merge(local.policies, { trainer = local.trainer_policy, launcher = local.launcher_policy })
}
