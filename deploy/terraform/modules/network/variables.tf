variable "name" {
  description = "Prefix of all names."
  type        = string
}

variable "cidr" {
  description = "Addresses of the VPC, a /16. It must not overlap with networks that it is to be connected with."
  type        = string

  validation {
    condition     = can(cidrsubnet(var.cidr, 4, 15)) && endswith(var.cidr, "/16")
    error_message = "cidr must be a /16, such as 10.40.0.0/16."
  }
}

variable "nat_per_zone" {
  description = "Whether each zone has a NAT gateway of its own. With one, the loss of its zone cuts all zones off from the internet, though not from Kafka, the store and S3."
  type        = bool
}

variable "interface_endpoints" {
  description = "AWS services that are reached within the VPC, such as ecr.api, ecr.dkr, sts and logs. Each costs by the hour and zone; without them their traffic passes the NAT gateway."
  type        = set(string)
}

variable "log_days" {
  description = "Days for which logs of rejected connections are kept."
  type        = number
}

variable "kms_key_arn" {
  description = "ARN of the key that encrypts logs."
  type        = string
}
