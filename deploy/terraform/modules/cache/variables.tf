variable "name" {
  description = "Name of the store, at most 33 characters."
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

variable "key_prefix" {
  description = "Prefix of Riffle's keys: RIFFLE_REDIS_PREFIX."
  type        = string
}

variable "engine_version" {
  description = "Version of Valkey, 8.x."
  type        = string
}

variable "node_type" {
  description = "Type of a node, such as cache.t4g.small."
  type        = string
}

variable "nodes" {
  description = "The primary and its replicas, each in another zone: 1 to 3."
  type        = number

  validation {
    condition     = var.nodes >= 1 && var.nodes <= 3
    error_message = "nodes must be 1 to 3."
  }
}

variable "kms_key_arn" {
  description = "ARN of the key that encrypts the disks."
  type        = string
}
