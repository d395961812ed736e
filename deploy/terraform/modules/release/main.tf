# Values of the chart deploy/helm/riffle. Helm is run by hand or by a pipeline: see the decision in docs/decisions.

locals {
  settings = merge(
    {
      RIFFLE_BOOTSTRAP            = var.bootstrap
      RIFFLE_PARTITIONS           = tostring(var.partitions)
      RIFFLE_REPLICATION          = "3"
      RIFFLE_TOPIC_PREFIX         = var.topic_prefix
      RIFFLE_APP_ID               = var.app_id
      RIFFLE_ARCHIVE              = "s3://${var.bucket}/${var.folders.archive}"
      RIFFLE_KAFKA_SECURITY       = "SASL_SSL"
      RIFFLE_KAFKA_SASL_MECHANISM = "OAUTHBEARER"
      RIFFLE_KAFKA_MSK_REGION     = var.region
      RIFFLE_LOG_FORMAT           = "json"
    },
    var.traces == "" ? {} : { RIFFLE_TRACES = var.traces, RIFFLE_TRACE_SHARE = tostring(var.trace_share) },
    var.settings,
  )

  on_demand = { "karpenter.sh/nodepool" = var.node_pools.on_demand }
  spot      = { "karpenter.sh/nodepool" = var.node_pools.spot }
  tolerated = [{ key = "riffle/spot", operator = "Exists", effect = "NoSchedule" }]

  values = {
    image    = { registry = var.registry, tag = var.image_tag }
    settings = local.settings
    secrets  = { environment = var.secret }

    worker = merge(
      {
        replicas     = var.workers.replicas
        resources    = { requests = { cpu = var.workers.cpu, memory = var.workers.memory }, limits = { memory = var.workers.memory_limit } }
        persistence  = { size = var.workers.disk, storageClass = "riffle" }
        nodeSelector = local.on_demand
        zoneSpread   = "DoNotSchedule"
      },
      var.traces == "" ? {} : { image = { repository = "riffle-tracing" } },
    )

    ranking = {
      enabled      = var.ranking.replicas > 0
      replicas     = max(1, var.ranking.replicas)
      resources    = { requests = { cpu = var.ranking.cpu, memory = var.ranking.memory }, limits = { memory = var.ranking.memory } }
      nodeSelector = var.ranking.gpu ? {} : local.spot
      tolerations  = var.ranking.gpu ? [] : local.tolerated
      gpu          = { enabled = var.ranking.gpu, nodeSelector = { "karpenter.sh/nodepool" = var.node_pools.gpu } }
    }

    encoder = {
      enabled      = var.encoder
      nodeSelector = local.spot
      tolerations  = local.tolerated
    }

    train = {
      enabled      = var.train.enabled
      upload       = "s3://${var.bucket}/${var.folders.releases}"
      full         = { arguments = var.train.arguments }
      incremental  = { arguments = var.train.arguments }
      persistence  = { size = var.train.disk, storageClass = "riffle" }
      nodeSelector = local.on_demand
    }

    networkPolicy = {
      clients = [for namespace in var.client_namespaces : { namespaceSelector = { matchLabels = { "kubernetes.io/metadata.name" = namespace } } }]
      backends = concat(
        [{ to = [for cidr in var.backend_cidrs : { ipBlock = { cidr = cidr } }], ports = [{ port = 9098, protocol = "TCP" }, { port = 6379, protocol = "TCP" }] }],
        [{ to = [for cidr in var.dns_cidrs : { ipBlock = { cidr = cidr } }], ports = [{ port = 53, protocol = "UDP" }, { port = 53, protocol = "TCP" }] }],
        var.traces == "" ? [] : [{
          to    = [{ namespaceSelector = { matchLabels = { "kubernetes.io/metadata.name" = "observability" } } }]
          ports = [{ port = 4318, protocol = "TCP" }]
        }],
      )
      https = concat(
        [{ ipBlock = { cidr = "0.0.0.0/0", except = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"] } }],
        # interface endpoints give AWS's names addresses of the VPC
        [for cidr in var.endpoint_cidrs : { ipBlock = { cidr = cidr } }],
      )
      podIdentity = true
    }
  }
}
