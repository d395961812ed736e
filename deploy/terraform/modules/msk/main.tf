# Kafka: three brokers, one a zone, TLS only, and IAM as the only login. Riffle creates its topics itself (streams/kafka/topics.py).

resource "aws_security_group" "this" {
  name        = "${var.name}-kafka"
  description = "Brokers of ${var.name}"
  vpc_id      = var.vpc_id

  tags = { Name = "${var.name}-kafka" }
}

resource "aws_vpc_security_group_ingress_rule" "iam" {
  for_each = var.client_security_groups

  security_group_id            = aws_security_group.this.id
  description                  = "IAM over TLS from ${each.key}"
  referenced_security_group_id = each.value
  from_port                    = 9098
  to_port                      = 9098
  ip_protocol                  = "tcp"
}

resource "aws_cloudwatch_log_group" "broker" {
  name              = "/${var.name}/kafka"
  retention_in_days = var.log_days
  kms_key_id        = var.kms_key_arn
}

resource "aws_msk_configuration" "this" {
  name           = var.name
  kafka_versions = [var.kafka_version]

  server_properties = join("\n", [for key, value in local.broker : "${key}=${value}"])

  lifecycle {
    create_before_destroy = true
  }
}

locals {
  broker = {
    # Riffle creates its topics with the settings that they need, and refuses others; a misspelt name must not become a topic
    "auto.create.topics.enable" = "false"
    # a value has at most 1 MiB, and clients send batches of at most 2 MiB
    "message.max.bytes"              = "2097152"
    "default.replication.factor"     = "3"
    "min.insync.replicas"            = "2"
    "num.partitions"                 = "1"
    "unclean.leader.election.enable" = "false"
    # Riffle's transactions ask for 60 s
    "transaction.max.timeout.ms"               = "900000"
    "transaction.state.log.replication.factor" = "3"
    "transaction.state.log.min.isr"            = "2"
    "offsets.topic.replication.factor"         = "3"
    # longer than a week of standstill, after which a group would begin anew
    "offsets.retention.minutes"        = "20160"
    "transactional.id.expiration.ms"   = "604800000"
    "group.initial.rebalance.delay.ms" = "1000"
  }
}

resource "aws_msk_cluster" "this" {
  cluster_name           = var.name
  kafka_version          = var.kafka_version
  number_of_broker_nodes = 3
  enhanced_monitoring    = var.enhanced_monitoring

  broker_node_group_info {
    instance_type   = var.instance_type
    client_subnets  = var.subnet_ids
    security_groups = [aws_security_group.this.id]

    storage_info {
      ebs_storage_info {
        volume_size = var.volume_gb
      }
    }
  }

  client_authentication {
    unauthenticated = false

    sasl {
      iam   = true
      scram = false
    }
  }

  configuration_info {
    arn      = aws_msk_configuration.this.arn
    revision = aws_msk_configuration.this.latest_revision
  }

  encryption_info {
    encryption_at_rest_kms_key_arn = var.kms_key_arn

    encryption_in_transit {
      client_broker = "TLS"
      in_cluster    = true
    }
  }

  logging_info {
    broker_logs {
      cloudwatch_logs {
        enabled   = true
        log_group = aws_cloudwatch_log_group.broker.name
      }
    }
  }

  lifecycle {
    # it grows by itself, below, and cannot shrink
    ignore_changes = [broker_node_group_info[0].storage_info[0].ebs_storage_info[0].volume_size]
  }
}

resource "aws_appautoscaling_target" "storage" {
  min_capacity       = 1
  max_capacity       = var.max_volume_gb
  resource_id        = aws_msk_cluster.this.arn
  scalable_dimension = "kafka:broker-storage:VolumeSize"
  service_namespace  = "kafka"
}

resource "aws_appautoscaling_policy" "storage" {
  name               = "${var.name}-kafka-storage"
  policy_type        = "TargetTrackingScaling"
  resource_id        = aws_appautoscaling_target.storage.resource_id
  scalable_dimension = aws_appautoscaling_target.storage.scalable_dimension
  service_namespace  = aws_appautoscaling_target.storage.service_namespace

  target_tracking_scaling_policy_configuration {
    disable_scale_in = true
    target_value     = 60

    predefined_metric_specification {
      predefined_metric_type = "KafkaBrokerStorageUtilization"
    }
  }
}
