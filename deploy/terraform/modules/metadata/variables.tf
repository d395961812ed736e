variable "name" {
  description = "Prefix of all names."
  type        = string
}

variable "vpc_id" {
  description = "Id of the VPC."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets."
  type        = list(string)
}

variable "client_security_groups" {
  description = "Groups that may connect, by a name that is known before they are created."
  type        = map(string)
}

variable "engine_version" {
  description = "Version of PostgreSQL, such as 17 or 17.6."
  type        = string
}

variable "instance_class" {
  description = "Type of the machine, such as db.t4g.small."
  type        = string
}

variable "multi_az" {
  description = "Whether a standby in another zone takes over."
  type        = bool
}

variable "max_storage_gb" {
  description = "Size to which the disk may grow by itself from 20, GiB."
  type        = number
}

variable "backup_days" {
  description = "Days for which backups are kept."
  type        = number
}

variable "deletion_protection" {
  description = "Whether the database refuses to be deleted, and leaves a last snapshot when it is."
  type        = bool
}

variable "kms_key_arn" {
  description = "ARN of the key that encrypts disk, snapshots and password."
  type        = string
}
