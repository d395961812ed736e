variable "name" {
  description = "Name of the cluster."
  type        = string
}

variable "vpc_id" {
  description = "Id of the VPC."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets of the brokers, one a zone."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) == 3
    error_message = "subnet_ids must be three subnets, one a zone."
  }
}

variable "client_security_groups" {
  description = "Groups that may connect, by a name that is known before they are created."
  type        = map(string)
}

variable "kafka_version" {
  description = "Version of Kafka, as `aws kafka list-kafka-versions` names it."
  type        = string
}

variable "instance_type" {
  description = "Type of the brokers, such as kafka.m7g.large."
  type        = string
}

variable "volume_gb" {
  description = "Disk of a broker at the beginning, GiB."
  type        = number
}

variable "max_volume_gb" {
  description = "Size to which a broker's disk may grow by itself, GiB."
  type        = number
}

variable "enhanced_monitoring" {
  description = "Level of metrics: DEFAULT, PER_BROKER, PER_TOPIC_PER_BROKER or PER_TOPIC_PER_PARTITION. The first costs nothing, and holds what the alarms read."
  type        = string
}

variable "log_days" {
  description = "Days for which logs of the brokers are kept."
  type        = number
}

variable "kms_key_arn" {
  description = "ARN of the key that encrypts disks and logs."
  type        = string
}
