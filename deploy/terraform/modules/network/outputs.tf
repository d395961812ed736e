output "vpc_id" {
  description = "Id of the VPC."
  value       = aws_vpc.this.id
}

output "cidr" {
  description = "Addresses of the VPC."
  value       = aws_vpc.this.cidr_block
}

output "private_subnet_ids" {
  description = "Ids of the private subnets, one a zone."
  value       = aws_subnet.private[*].id
}

output "private_cidrs" {
  description = "Addresses of the private subnets."
  value       = local.private_cidrs
}
