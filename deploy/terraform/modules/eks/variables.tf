variable "name" {
  description = "Name of the cluster and prefix of all other names."
  type        = string
}

variable "kubernetes_version" {
  description = "Version of Kubernetes, such as 1.34."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets, one a zone."
  type        = list(string)
}

variable "service_cidr" {
  description = "Addresses of Kubernetes' Services, outside of the VPC's. It cannot be changed."
  type        = string
}

variable "public_access_cidrs" {
  description = "Addresses that may reach the API server over the internet. If empty, it is reached from within the VPC only."
  type        = list(string)

  validation {
    condition     = !contains(var.public_access_cidrs, "0.0.0.0/0")
    error_message = "public_access_cidrs must name the addresses of those who operate the cluster, not the whole internet."
  }
}

variable "admin_role_arns" {
  description = "ARNs of the IAM roles that administer the cluster. Whoever creates it has no right by itself."
  type        = set(string)

  validation {
    condition     = length(var.admin_role_arns) > 0
    error_message = "admin_role_arns must name at least one role, or nobody could use the cluster."
  }
}

variable "identities" {
  description = "Namespace and service account of pods, and the role whose credentials they get."
  type = map(object({
    namespace       = string
    service_account = string
    role_arn        = string
  }))
}

variable "pools" {
  description = "Limits of the pools of nodes: processors of each, and families of machines with and without GPUs."
  type = object({
    on_demand_cpus = number
    spot_cpus      = number
    gpu_count      = number
    cpu_families   = list(string)
    gpu_families   = list(string)
  })
}

variable "namespace" {
  description = "Namespace of the chart's release."
  type        = string
}

variable "architecture" {
  description = "Architecture of the images: amd64 or arm64."
  type        = string
}

variable "collector" {
  description = "Image of the OpenTelemetry collector that sends traces to X-Ray, and the region; null: no collector."
  type = object({
    image  = string
    region = string
  })
}

variable "container_insights" {
  description = "Whether CloudWatch gets the logs and figures of all pods."
  type        = bool
}

variable "cloudwatch_role_arn" {
  description = "Role of CloudWatch's agent, if container_insights."
  type        = string
}

variable "deletion_protection" {
  description = "Whether the cluster refuses to be deleted."
  type        = bool
}

variable "log_days" {
  description = "Days for which logs of the control plane are kept."
  type        = number
}

variable "kms_key_arn" {
  description = "ARN of the key that encrypts the cluster's Secrets and its logs."
  type        = string
}
