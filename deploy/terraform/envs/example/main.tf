# All that Riffle needs on AWS, but for the chart itself: see ../../README.md.

locals {
  images = ["riffle-worker", "riffle-tracing", "riffle-ranking-gpu", "riffle-train"]
  # the name of the chart's release, of which its service accounts are named
  release      = "riffle"
  service_cidr = "172.20.0.0/16"
  connections  = { pods = module.eks.security_group_id }
}

module "key" {
  source = "../../modules/key"

  name = var.name
}

module "network" {
  source = "../../modules/network"

  name                = var.name
  cidr                = var.cidr
  nat_per_zone        = var.size.nat_per_zone
  interface_endpoints = var.size.interface_endpoints
  log_days            = var.log_days
  kms_key_arn         = module.key.arn
}

module "eks" {
  source = "../../modules/eks"

  name                = var.name
  kubernetes_version  = var.kubernetes_version
  subnet_ids          = module.network.private_subnet_ids
  service_cidr        = local.service_cidr
  public_access_cidrs = var.public_access_cidrs
  admin_role_arns     = var.admin_role_arns
  namespace           = var.namespace
  architecture        = var.architecture
  pools               = var.size.pools
  collector           = var.size.traces ? { image = var.collector_image, region = var.region } : null
  container_insights  = var.size.container_insights
  cloudwatch_role_arn = module.iam.cloudwatch_role_arn
  deletion_protection = var.deletion_protection
  log_days            = var.log_days
  kms_key_arn         = module.key.arn

  identities = merge(
    {
      for component, arn in module.iam.role_arns : component => {
        namespace       = var.namespace
        service_account = "${local.release}-${component}"
        role_arn        = arn
      }
    },
    var.size.traces ? {
      collector = { namespace = "observability", service_account = "collector", role_arn = module.iam.collector_role_arn }
    } : {},
  )
}

module "msk" {
  source = "../../modules/msk"

  name                   = var.name
  vpc_id                 = module.network.vpc_id
  subnet_ids             = module.network.private_subnet_ids
  client_security_groups = local.connections
  kafka_version          = var.kafka_version
  instance_type          = var.size.kafka.instance_type
  volume_gb              = var.size.kafka.volume_gb
  max_volume_gb          = var.size.kafka.max_volume_gb
  enhanced_monitoring    = "DEFAULT"
  log_days               = var.log_days
  kms_key_arn            = module.key.arn
}

module "cache" {
  source = "../../modules/cache"

  name                   = var.name
  vpc_id                 = module.network.vpc_id
  subnet_ids             = module.network.private_subnet_ids
  client_security_groups = local.connections
  key_prefix             = "${var.topic_prefix}user:"
  engine_version         = var.valkey_version
  node_type              = var.size.cache.node_type
  nodes                  = var.size.cache.nodes
  kms_key_arn            = module.key.arn
}

module "storage" {
  source = "../../modules/storage"

  bucket              = var.bucket
  kms_key_arn         = module.key.arn
  training_days       = 30
  noncurrent_days     = 7
  deletion_protection = var.deletion_protection
}

module "metadata" {
  source = "../../modules/metadata"
  count  = var.size.metadata == null ? 0 : 1

  name                   = var.name
  vpc_id                 = module.network.vpc_id
  subnet_ids             = module.network.private_subnet_ids
  client_security_groups = local.connections
  engine_version         = var.postgres_version
  instance_class         = var.size.metadata.instance_class
  multi_az               = var.size.metadata.multi_az
  max_storage_gb         = 100
  backup_days            = 7
  deletion_protection    = var.deletion_protection
  kms_key_arn            = module.key.arn
}

module "ecr" {
  source = "../../modules/ecr"

  repositories        = toset(local.images)
  kept_images         = 30
  kms_key_arn         = module.key.arn
  deletion_protection = var.deletion_protection
}

module "iam" {
  source = "../../modules/iam"

  name                 = var.name
  kafka_arn            = module.msk.arn
  kafka_name           = module.msk.name
  kafka_uuid           = module.msk.uuid
  topic_prefix         = var.topic_prefix
  app_id               = var.app_id
  reply_topics         = var.reply_topics
  bucket_arn           = module.storage.arn
  kms_key_arn          = module.key.arn
  train_repository_arn = module.ecr.arns["riffle-train"]
}

module "observability" {
  source = "../../modules/observability"

  name               = var.name
  cluster_name       = var.name
  kafka_name         = module.msk.name
  cache_group        = module.cache.group
  cache_nodes        = var.size.cache.nodes
  database           = one(module.metadata[*].identifier)
  with_database      = var.size.metadata != null
  mails              = var.mails
  container_insights = var.size.container_insights
  log_days           = var.log_days
  kms_key_arn        = module.key.arn
}

module "release" {
  source = "../../modules/release"

  region            = var.region
  registry          = module.ecr.registry
  image_tag         = var.image_tag
  bootstrap         = module.msk.bootstrap
  partitions        = var.size.partitions
  topic_prefix      = var.topic_prefix
  app_id            = var.app_id
  bucket            = module.storage.bucket
  folders           = module.storage.folders
  secret            = "riffle"
  traces            = var.size.traces ? "http://collector.observability:4318" : ""
  trace_share       = 0.01
  settings          = var.settings
  node_pools        = module.eks.node_pools
  workers           = var.size.workers
  ranking           = var.size.ranking
  encoder           = true
  train             = { enabled = true, arguments = var.train_arguments, disk = var.size.train_disk }
  client_namespaces = var.client_namespaces
  backend_cidrs     = module.network.private_cidrs
  dns_cidrs         = concat([local.service_cidr], module.network.private_cidrs)
  endpoint_cidrs    = length(var.size.interface_endpoints) > 0 ? module.network.private_cidrs : []
}
