# What each component may do. rights.json lists topics, groups and transactional ids as the code uses them; the role of a component gets no others.

data "aws_partition" "this" {}
data "aws_region" "this" {}
data "aws_caller_identity" "this" {}

locals {
  partition = data.aws_partition.this.partition
  account   = data.aws_caller_identity.this.account_id
  kafka     = "arn:${local.partition}:kafka:${data.aws_region.this.region}:${local.account}"
  within    = "${var.kafka_name}/${var.kafka_uuid}"

  rights     = jsondecode(file("${path.module}/rights.json"))
  components = toset(["worker", "ranking", "encoder", "train"])

  # who takes a role: EKS, for the pods of this account
  by_pods = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
    }]
  })

  # names, with the prefix of topics and the application's id
  named = {
    for component, right in local.rights : component => {
      for kind in ["groups", "watched_groups", "transactions"] : kind => [
        for name in right[kind] : replace(replace(name, "{app}", var.app_id), "{prefix}", var.topic_prefix)
      ]
    }
  }

  arns = {
    for component, right in local.rights : component => {
      create   = [for topic in right.create : "${local.kafka}:topic/${local.within}/${var.topic_prefix}${topic}"]
      describe = [for topic in right.describe : "${local.kafka}:topic/${local.within}/${var.topic_prefix}${topic}"]
      read     = [for topic in right.read : "${local.kafka}:topic/${local.within}/${var.topic_prefix}${topic}"]
      write    = [for topic in right.write : "${local.kafka}:topic/${local.within}/${var.topic_prefix}${topic}"]
      replies  = length(right.replies) > 0 ? [for topic in var.reply_topics : "${local.kafka}:topic/${local.within}/${topic}"] : []

      groups         = [for name in local.named[component].groups : "${local.kafka}:group/${local.within}/${name}"]
      watched_groups = [for name in local.named[component].watched_groups : "${local.kafka}:group/${local.within}/${name}"]
      transactions   = [for name in local.named[component].transactions : "${local.kafka}:transactional-id/${local.within}/${name}"]
    }
  }

  # whoever asks creates and reads a reply topic: a client, and a worker that asks other workers
  on_replies = {
    read  = ["kafka-cluster:CreateTopic", "kafka-cluster:DescribeTopic", "kafka-cluster:ReadData"]
    write = ["kafka-cluster:DescribeTopic", "kafka-cluster:WriteData"]
  }

  kafka_statements = {
    for component, arn in local.arns : component => [
      for statement in [
        { Sid = "Connect", Action = ["kafka-cluster:Connect", "kafka-cluster:DescribeCluster", "kafka-cluster:WriteDataIdempotently"], Resource = [var.kafka_arn] },
        { Sid = "Create", Action = ["kafka-cluster:CreateTopic"], Resource = arn.create },
        { Sid = "Describe", Action = ["kafka-cluster:DescribeTopic", "kafka-cluster:DescribeTopicDynamicConfiguration"], Resource = arn.describe },
        { Sid = "Read", Action = ["kafka-cluster:DescribeTopic", "kafka-cluster:ReadData"], Resource = arn.read },
        { Sid = "Write", Action = ["kafka-cluster:DescribeTopic", "kafka-cluster:WriteData"], Resource = arn.write },
        {
          Sid      = "Replies"
          Action   = distinct(flatten([for kind in local.rights[component].replies : local.on_replies[kind]]))
          Resource = arn.replies
        },
        { Sid = "Groups", Action = ["kafka-cluster:AlterGroup", "kafka-cluster:DescribeGroup"], Resource = arn.groups },
        { Sid = "WatchedGroups", Action = ["kafka-cluster:DescribeGroup"], Resource = arn.watched_groups },
        { Sid = "Transactions", Action = ["kafka-cluster:AlterTransactionalId", "kafka-cluster:DescribeTransactionalId"], Resource = arn.transactions },
      ] : merge({ Effect = "Allow" }, statement) if length(statement.Resource) > 0
    ]
  }

  objects = {
    read  = ["s3:GetObject"]
    write = ["s3:AbortMultipartUpload", "s3:GetObject", "s3:PutObject"]
  }

  folders = {
    for component, right in local.rights : component => {
      listed = [for folder in keys(right.s3) : "${folder}/*"]
      read   = [for folder in keys(right.s3) : "${var.bucket_arn}/${folder}/*"]
      write  = [for folder, kind in right.s3 : "${var.bucket_arn}/${folder}/*" if kind == "write"]
    }
  }

  s3_statements = {
    for component, folder in local.folders : component => [
      for statement in [
        { Sid = "List", Action = ["s3:ListBucket"], Resource = [var.bucket_arn], Condition = { StringLike = { "s3:prefix" = folder.listed } } },
        { Sid = "ReadObjects", Action = ["s3:GetObject"], Resource = folder.read },
        { Sid = "WriteObjects", Action = ["s3:AbortMultipartUpload", "s3:PutObject"], Resource = folder.write },
        { Sid = "ReadKey", Action = ["kms:Decrypt"], Resource = [var.kms_key_arn] },
        { Sid = "WriteKey", Action = ["kms:GenerateDataKey"], Resource = length(folder.write) > 0 ? [var.kms_key_arn] : [] },
      ] : merge({ Effect = "Allow" }, statement) if length(statement.Resource) > 0 && length(folder.read) > 0
    ]
  }

  policies = {
    for component in keys(local.rights) : component => jsonencode({
      Version   = "2012-10-17"
      Statement = concat(local.kafka_statements[component], local.s3_statements[component])
    })
  }
}

# Pods get these roles from Pod Identity, by the name of their service account.
resource "aws_iam_role" "component" {
  for_each = local.components

  name = "${var.name}-${each.value}"

  assume_role_policy = local.by_pods
}

resource "aws_iam_role_policy" "component" {
  for_each = local.components

  name   = "riffle"
  role   = aws_iam_role.component[each.value].id
  policy = local.policies[each.value]
}

# For programs that send events, items and requests: attach it to their roles.
resource "aws_iam_policy" "client" {
  name        = "${var.name}-client"
  description = "Send events, items and requests to Riffle over Kafka, and read replies"
  policy      = local.policies.client
}

# SageMaker's training jobs (`riffle launch`) read the archive and write a release; they reach no Kafka.
resource "aws_iam_role" "trainer" {
  name = "${var.name}-trainer"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "sagemaker.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
    }]
  })
}

locals {
  trainer_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "List"
        Effect    = "Allow"
        Action    = ["s3:ListBucket"]
        Resource  = [var.bucket_arn]
        Condition = { StringLike = { "s3:prefix" = ["archive/*", "releases/*", "training/*"] } }
      },
      { Sid = "Read", Effect = "Allow", Action = ["s3:GetObject"], Resource = ["${var.bucket_arn}/archive/*", "${var.bucket_arn}/releases/*"] },
      {
        Sid      = "Write"
        Effect   = "Allow"
        Action   = ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject"]
        Resource = ["${var.bucket_arn}/training/*"]
      },
      { Sid = "Key", Effect = "Allow", Action = ["kms:Decrypt", "kms:GenerateDataKey"], Resource = [var.kms_key_arn] },
      { Sid = "Login", Effect = "Allow", Action = ["ecr:GetAuthorizationToken"], Resource = ["*"] },
      {
        Sid      = "Image"
        Effect   = "Allow"
        Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        Resource = [var.train_repository_arn]
      },
      {
        Sid      = "Logs"
        Effect   = "Allow"
        Action   = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
        Resource = ["arn:${local.partition}:logs:${data.aws_region.this.region}:${local.account}:log-group:/aws/sagemaker/TrainingJobs*"]
      },
      {
        Sid       = "Metrics"
        Effect    = "Allow"
        Action    = ["cloudwatch:PutMetricData"]
        Resource  = ["*"]
        Condition = { StringLike = { "cloudwatch:namespace" = "*/TrainingJobs" } }
      },
    ]
  })

  launcher_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "Jobs"
        Effect   = "Allow"
        Action   = ["sagemaker:AddTags", "sagemaker:CreateTrainingJob", "sagemaker:DescribeTrainingJob", "sagemaker:StopTrainingJob"]
        Resource = ["arn:${local.partition}:sagemaker:${data.aws_region.this.region}:${local.account}:training-job/*"]
      },
      {
        Sid       = "Role"
        Effect    = "Allow"
        Action    = ["iam:PassRole"]
        Resource  = [aws_iam_role.trainer.arn]
        Condition = { StringEquals = { "iam:PassedToService" = "sagemaker.amazonaws.com" } }
      },
    ]
  })
}

resource "aws_iam_role_policy" "trainer" {
  name   = "riffle"
  role   = aws_iam_role.trainer.id
  policy = local.trainer_policy
}

# For whoever runs `riffle launch sagemaker`.
resource "aws_iam_policy" "launcher" {
  name        = "${var.name}-launcher"
  description = "Start, watch and stop trainings of Riffle on SageMaker"
  policy      = local.launcher_policy
}

# The collector of traces, and CloudWatch's agent.
resource "aws_iam_role" "agent" {
  for_each = toset(["collector", "cloudwatch"])

  name = "${var.name}-${each.key}"

  assume_role_policy = local.by_pods
}

resource "aws_iam_role_policy_attachment" "agent" {
  for_each = { collector = "AWSXrayWriteOnlyAccess", cloudwatch = "CloudWatchAgentServerPolicy" }

  role       = aws_iam_role.agent[each.key].name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.value}"
}
