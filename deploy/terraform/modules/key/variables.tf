variable "name" {
  description = "Name of the key."
  type        = string
}
