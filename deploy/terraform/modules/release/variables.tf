variable "region" {
  description = "Region of the Kafka cluster."
  type        = string
}

variable "registry" {
  description = "Host name of the registry of images."
  type        = string
}

variable "image_tag" {
  description = "Tag of the images."
  type        = string
}

variable "bootstrap" {
  description = "Addresses of Kafka for IAM over TLS."
  type        = string
}

variable "partitions" {
  description = "RIFFLE_PARTITIONS: at least the largest number of workers that is ever wanted. Changed later only by copying topics."
  type        = number

  validation {
    condition     = var.partitions >= 1 && floor(var.partitions) == var.partitions
    error_message = "partitions must be a whole number of at least 1."
  }
}

variable "topic_prefix" {
  description = "RIFFLE_TOPIC_PREFIX."
  type        = string
}

variable "app_id" {
  description = "RIFFLE_APP_ID."
  type        = string
}

variable "bucket" {
  description = "Bucket of archive and releases."
  type        = string
}

variable "folders" {
  description = "Prefixes in the bucket."
  type        = object({ archive = string, releases = string })
}

variable "secret" {
  description = "Secret of Kubernetes that holds RIFFLE_REDIS_URL, with the store's password."
  type        = string
}

variable "traces" {
  description = "Address of the collector of traces; empty: no traces."
  type        = string
}

variable "trace_share" {
  description = "Share of the requests that are traced, 0 to 1."
  type        = number
}

variable "settings" {
  description = "Further settings of Riffle, which win."
  type        = map(string)
}

variable "node_pools" {
  description = "Names of the pools of nodes."
  type        = object({ on_demand = string, spot = string, gpu = string })
}

variable "workers" {
  description = "Number and size of workers."
  type        = object({ replicas = number, cpu = string, memory = string, memory_limit = string, disk = string })
}

variable "ranking" {
  description = "Number and size of ranking processes, 0: workers rank by themselves; and whether they use a GPU."
  type        = object({ replicas = number, cpu = string, memory = string, gpu = bool })
}

variable "encoder" {
  description = "Whether new items are encoded as they arrive."
  type        = bool
}

variable "train" {
  description = "Whether models are retrained on a schedule, arguments of `riffle train`, and the disk of trainings."
  type        = object({ enabled = bool, arguments = list(string), disk = string })
}

variable "client_namespaces" {
  description = "Namespaces whose pods may send requests over HTTP."
  type        = set(string)
}

variable "backend_cidrs" {
  description = "Addresses of Kafka and of the store."
  type        = list(string)
}

variable "dns_cidrs" {
  description = "Addresses at which names are resolved. In Auto Mode each node does so, not a pod of kube-system, which is what the chart's policy lets through."
  type        = list(string)
}

variable "endpoint_cidrs" {
  description = "Addresses of interface endpoints; empty: there are none."
  type        = list(string)
}
