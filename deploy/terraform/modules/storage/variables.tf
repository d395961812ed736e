variable "bucket" {
  description = "Name of the bucket, unique among all of AWS."
  type        = string
}

variable "kms_key_arn" {
  description = "ARN of the key that encrypts objects."
  type        = string
}

variable "training_days" {
  description = "Days for which checkpoints and output of SageMaker are kept."
  type        = number
}

variable "noncurrent_days" {
  description = "Days for which objects that were replaced or deleted can be restored."
  type        = number
}

variable "deletion_protection" {
  description = "Whether a bucket that holds objects refuses to be deleted."
  type        = bool
}
