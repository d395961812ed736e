# Alarms of what AWS runs. Those of Riffle itself are Prometheus' (deploy/prometheus), because their figures are there.

data "aws_caller_identity" "this" {}

resource "aws_sns_topic" "alarms" {
  name              = "${var.name}-alarms"
  kms_master_key_id = var.kms_key_arn
}

resource "aws_sns_topic_policy" "alarms" {
  arn = aws_sns_topic.alarms.arn

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "Alarms"
      Effect    = "Allow"
      Principal = { Service = "cloudwatch.amazonaws.com" }
      Action    = "sns:Publish"
      Resource  = aws_sns_topic.alarms.arn
      Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.this.account_id } }
    }]
  })
}

# Each address gets a mail that it must confirm.
resource "aws_sns_topic_subscription" "mail" {
  for_each = var.mails

  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = each.value
}

locals {
  brokers = ["1", "2", "3"]

  kafka = {
    offline-partitions = {
      metric = "OfflinePartitionsCount", statistic = "Maximum", above = 0, minutes = 5
      text   = "Partitions have no leader: events and requests of their users wait."
    }
    controller = {
      metric = "ActiveControllerCount", statistic = "Maximum", below = 1, minutes = 5
      text   = "Kafka has no controller: leaders cannot change."
    }
  }

  broker = {
    under-replicated = {
      metric = "UnderReplicatedPartitions", statistic = "Maximum", above = 0, minutes = 30
      text   = "Replicas are behind: the loss of another broker would stop writes."
    }
    disk = {
      metric = "KafkaDataLogsDiskUsed", statistic = "Maximum", above = 80, minutes = 15
      text   = "The disk of a broker is filling faster than it grows."
    }
    cpu = {
      metric = "CpuUser", statistic = "Average", above = 60, minutes = 30
      text   = "A broker is busy: with one broker less the others could not take its part."
    }
  }

  cache = {
    memory = {
      metric = "DatabaseMemoryUsagePercentage", above = 85, minutes = 15
      text   = "Summaries of users are about to be evicted before their time."
    }
    cpu = {
      metric = "EngineCPUUtilization", above = 80, minutes = 15
      text   = "Valkey's only thread is busy."
    }
  }

  database = {
    storage = {
      metric = "FreeStorageSpace", below = 2000000000, minutes = 15
      text   = "The disk of the database is almost full."
    }
    cpu = {
      metric = "CPUUtilization", above = 80, minutes = 30
      text   = "The database is busy."
    }
  }

  alarms = merge(
    { for name, alarm in local.kafka : "kafka-${name}" => merge(alarm, { namespace = "AWS/Kafka", dimensions = { "Cluster Name" = var.kafka_name } }) },
    merge([
      for name, alarm in local.broker : {
        for id in local.brokers : "kafka-${name}-${id}" => merge(alarm, {
          namespace = "AWS/Kafka", dimensions = { "Cluster Name" = var.kafka_name, "Broker ID" = id }
        })
      }
    ]...),
    merge([
      for name, alarm in local.cache : {
        for number in range(1, var.cache_nodes + 1) : "cache-${name}-${number}" => merge(alarm, {
          namespace = "AWS/ElastiCache", statistic = "Average", dimensions = { CacheClusterId = format("%s-%03d", var.cache_group, number) }
        })
      }
    ]...),
    {
      for name, alarm in local.database : "metadata-${name}" => merge(alarm, {
        namespace = "AWS/RDS", statistic = "Average", dimensions = { DBInstanceIdentifier = var.database }
      }) if var.with_database
    },
  )
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each = local.alarms

  alarm_name        = "${var.name}-${each.key}"
  alarm_description = each.value.text
  namespace         = each.value.namespace
  metric_name       = each.value.metric
  dimensions        = each.value.dimensions
  statistic         = each.value.statistic

  comparison_operator = can(each.value.above) ? "GreaterThanThreshold" : "LessThanThreshold"
  threshold           = try(each.value.above, each.value.below)
  period              = 60
  evaluation_periods  = each.value.minutes
  datapoints_to_alarm = each.value.minutes
  treat_missing_data  = "missing"

  alarm_actions = [aws_sns_topic.alarms.arn]
  ok_actions    = [aws_sns_topic.alarms.arn]
}

# Logs of pods, which CloudWatch's agent writes; it would create these groups without an end and without the key.
resource "aws_cloudwatch_log_group" "pods" {
  for_each = var.container_insights ? toset(["application", "dataplane", "host", "performance"]) : toset([])

  name              = "/aws/containerinsights/${var.cluster_name}/${each.value}"
  retention_in_days = var.log_days
  kms_key_id        = var.kms_key_arn
}
