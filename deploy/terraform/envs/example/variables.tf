variable "name" {
  description = "Name of this deployment: of the clusters, and prefix of all other names."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,23}[a-z0-9]$", var.name))
    error_message = "name must have 3 to 25 lower-case letters, digits and hyphens, and begin with a letter."
  }
}

variable "region" {
  description = "Region of AWS, with at least three zones."
  type        = string
}

variable "bucket" {
  description = "Name of the bucket of archive and releases, unique among all of AWS."
  type        = string
}

variable "cidr" {
  description = "Addresses of the VPC, a /16."
  type        = string
  default     = "10.40.0.0/16"
}

variable "admin_role_arns" {
  description = "ARNs of the IAM roles that administer the cluster."
  type        = set(string)
}

variable "public_access_cidrs" {
  description = "Addresses that may reach the API server of Kubernetes over the internet; empty: none."
  type        = list(string)
  default     = []
}

variable "client_namespaces" {
  description = "Namespaces whose pods may ask Riffle over HTTP."
  type        = set(string)
  default     = []
}

variable "reply_topics" {
  description = "Topics to which programs may have answers sent; * stands for any text."
  type        = set(string)
  default     = ["riffle.replies*"]
}

variable "mails" {
  description = "Addresses that get mails about alarms."
  type        = set(string)
  default     = []
}

variable "image_tag" {
  description = "Tag of the images that were pushed."
  type        = string
}

variable "train_arguments" {
  description = "Arguments of `riffle train`, such as --positive and a rule."
  type        = list(string)
  default     = []
}

variable "settings" {
  description = "Further settings of Riffle, RIFFLE_…, which win over those that follow from the infrastructure."
  type        = map(string)
  default     = {}
}

variable "namespace" {
  description = "Namespace of the chart's release in Kubernetes."
  type        = string
  default     = "riffle"
}

variable "topic_prefix" {
  description = "Prefix of Riffle's topics."
  type        = string
  default     = "riffle."
}

variable "app_id" {
  description = "Name of the group of workers, from which those of the archiver and the encoder are derived."
  type        = string
  default     = "riffle"
}

variable "deletion_protection" {
  description = "Whether cluster, database, bucket and repositories refuse to be deleted. Set it to false, and apply, before a teardown."
  type        = bool
  default     = true
}

variable "log_days" {
  description = "Days for which logs are kept."
  type        = number
  default     = 365
}

variable "architecture" {
  description = "Architecture of the images and nodes: amd64 or arm64. The families of machines in `size` must be of it."
  type        = string
  default     = "amd64"

  validation {
    condition     = contains(["amd64", "arm64"], var.architecture)
    error_message = "architecture must be amd64 or arm64."
  }
}

variable "kubernetes_version" {
  description = "Version of Kubernetes."
  type        = string
  default     = "1.34"
}

variable "kafka_version" {
  description = "Version of Kafka, of `aws kafka list-kafka-versions`."
  type        = string
  default     = "4.1.x.kraft"
}

variable "valkey_version" {
  description = "Version of Valkey, 8.x."
  type        = string
  default     = "8.1"
}

variable "postgres_version" {
  description = "Version of PostgreSQL."
  type        = string
  default     = "17"
}

variable "collector_image" {
  description = "Image of AWS's distribution of the OpenTelemetry collector."
  type        = string
  default     = "public.ecr.aws/aws-observability/aws-otel-collector:v0.43.3"
}

variable "size" {
  description = "How large it is: small.tfvars, medium.tfvars or large.tfvars."
  type = object({
    partitions          = number
    nat_per_zone        = bool
    interface_endpoints = set(string)
    traces              = bool
    container_insights  = bool
    train_disk          = string
    workers             = object({ replicas = number, cpu = string, memory = string, memory_limit = string, disk = string })
    ranking             = object({ replicas = number, cpu = string, memory = string, gpu = bool })
    kafka               = object({ instance_type = string, volume_gb = number, max_volume_gb = number })
    cache               = object({ node_type = string, nodes = number })
    metadata            = optional(object({ instance_class = string, multi_az = bool }))
    pools = object({
      on_demand_cpus = number
      spot_cpus      = number
      gpu_count      = number
      cpu_families   = list(string)
      gpu_families   = list(string)
    })
  })

  validation {
    condition     = var.size.workers.replicas <= var.size.partitions
    error_message = "size.workers.replicas must not be more than size.partitions: a worker without a partition is never ready."
  }
}
