variable "name" {
  description = "Prefix of the names of roles and policies."
  type        = string
}

variable "kafka_arn" {
  description = "ARN of the Kafka cluster."
  type        = string
}

variable "kafka_name" {
  description = "Name of the Kafka cluster."
  type        = string
}

variable "kafka_uuid" {
  description = "Id of the Kafka cluster, the second part of the ARNs of its topics."
  type        = string
}

variable "topic_prefix" {
  description = "RIFFLE_TOPIC_PREFIX."
  type        = string
}

variable "app_id" {
  description = "RIFFLE_APP_ID."
  type        = string
}

variable "reply_topics" {
  description = "Topics to which clients may have answers sent; * stands for any text."
  type        = set(string)
}

variable "bucket_arn" {
  description = "ARN of the bucket of archive, releases and trainings."
  type        = string
}

variable "kms_key_arn" {
  description = "ARN of the key that encrypts the bucket's objects."
  type        = string
}

variable "train_repository_arn" {
  description = "ARN of the repository of the image for training."
  type        = string
}
