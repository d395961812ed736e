variable "repositories" {
  description = "Names of the repositories."
  type        = set(string)
}

variable "kept_images" {
  description = "Images that each repository keeps. Helm's rollback needs those of earlier releases."
  type        = number
}

variable "kms_key_arn" {
  description = "ARN of the key that encrypts images."
  type        = string
}

variable "deletion_protection" {
  description = "Whether a repository that holds images refuses to be deleted."
  type        = bool
}
