output "cluster_name" {
  description = "Name of the EKS cluster, for `aws eks update-kubeconfig`."
  value       = module.eks.cluster_name
}

output "manifests" {
  description = "What the cluster needs before the chart, for `kubectl apply -f -`."
  value       = module.eks.manifests
}

output "values" {
  description = "Values of the chart, for `helm upgrade --install --values`."
  value       = module.release.values
}

output "registry" {
  description = "Registry to which images are pushed."
  value       = module.ecr.registry
}

output "namespace" {
  description = "Namespace of the chart's release."
  value       = var.namespace
}

output "cache" {
  description = "Address and user of the store, whose password the runbook sets."
  value       = { address = module.cache.address, user = module.cache.user }
}

output "database" {
  description = "Address of the database for MLflow, and the secret with its login; null without one."
  value       = one([for database in module.metadata : { address = database.address, secret_arn = database.secret_arn }])
}

output "bucket" {
  description = "Bucket of archive and releases."
  value       = module.storage.bucket
}

output "trainer_role_arn" {
  description = "Role for `riffle launch sagemaker --role`."
  value       = module.iam.trainer_role_arn
}

output "policy_arns" {
  description = "Policies to attach to the roles of programs that use Riffle over Kafka, and of whoever launches trainings."
  value       = { client = module.iam.client_policy_arn, launcher = module.iam.launcher_policy_arn }
}
