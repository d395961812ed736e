# All of envs/example applied to a mocked AWS: no account is asked, so what AWS itself would refuse is not found.

mock_provider "aws" {
  mock_data "aws_availability_zones" {
    defaults = { names = ["eu-central-1a", "eu-central-1b", "eu-central-1c"] }
  }

  mock_data "aws_region" {
    defaults = { region = "eu-central-1" }
  }

  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }

  mock_resource "aws_msk_cluster" {
    defaults = {
      arn                        = "arn:aws:kafka:eu-central-1:111122223333:cluster/shop-riffle/12345678-abcd"
      cluster_uuid               = "12345678-abcd"
      bootstrap_brokers_sasl_iam = "b-1.shop.kafka.eu-central-1.amazonaws.com:9098,b-2.shop.kafka.eu-central-1.amazonaws.com:9098"
    }
  }

  mock_resource "aws_ecr_repository" {
    defaults = {
      arn            = "arn:aws:ecr:eu-central-1:111122223333:repository/riffle-train"
      repository_url = "111122223333.dkr.ecr.eu-central-1.amazonaws.com/riffle-train"
    }
  }

  mock_resource "aws_s3_bucket" {
    defaults = { id = "shop-riffle", arn = "arn:aws:s3:::shop-riffle" }
  }

  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-0000-0000-000000000000" }
  }

  mock_resource "aws_db_instance" {
    defaults = {
      address            = "metadata.shop.eu-central-1.rds.amazonaws.com"
      master_user_secret = [{ kms_key_id = "key", secret_arn = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:rds", secret_status = "active" }]
    }
  }
}

variables {
  name                = "shop-riffle"
  region              = "eu-central-1"
  bucket              = "shop-riffle"
  admin_role_arns     = ["arn:aws:iam::111122223333:role/operators"]
  public_access_cidrs = ["203.0.113.0/24"]
  client_namespaces   = ["shop"]
  mails               = ["operators@example.com"]
  image_tag           = "1.0.0"
  train_arguments     = ["--positive", "action == 'like'"]
}

run "apply" {
  command = apply
}
