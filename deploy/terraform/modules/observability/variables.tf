variable "name" {
  description = "Prefix of all names."
  type        = string
}

variable "cluster_name" {
  description = "Name of the EKS cluster."
  type        = string
}

variable "kafka_name" {
  description = "Name of the Kafka cluster."
  type        = string
}

variable "cache_group" {
  description = "Id of the store's replication group."
  type        = string
}

variable "cache_nodes" {
  description = "Number of the store's nodes."
  type        = number
}

variable "database" {
  description = "Name of the database's instance, if with_database."
  type        = string
}

variable "with_database" {
  description = "Whether there is a database. Known before it is created, as the names of alarms must be."
  type        = bool
}

variable "mails" {
  description = "Addresses that get mails about alarms."
  type        = set(string)
}

variable "container_insights" {
  description = "Whether CloudWatch gets the logs of all pods."
  type        = bool
}

variable "log_days" {
  description = "Days for which logs of pods are kept."
  type        = number
}

variable "kms_key_arn" {
  description = "ARN of the key that encrypts logs and messages. CloudWatch must be allowed to use it."
  type        = string
}
