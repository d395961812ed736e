# For production: a NAT gateway a zone, a replica of the store, ranking in processes of its own, traces, MLflow's database.
size = {
  partitions          = 24
  nat_per_zone        = true
  interface_endpoints = ["ecr.api", "ecr.dkr", "logs", "sts"]
  traces              = true
  container_insights  = true
  train_disk          = "100Gi"
  workers             = { replicas = 6, cpu = "2", memory = "4Gi", memory_limit = "8Gi", disk = "50Gi" }
  ranking             = { replicas = 3, cpu = "2", memory = "2Gi", gpu = false }
  kafka               = { instance_type = "kafka.m7g.large", volume_gb = 500, max_volume_gb = 2000 }
  cache               = { node_type = "cache.r7g.large", nodes = 2 }
  metadata            = { instance_class = "db.t4g.small", multi_az = false }

  pools = {
    on_demand_cpus = 64
    spot_cpus      = 48
    gpu_count      = 0
    cpu_families   = ["m7i", "m7a", "m6i"]
    gpu_families   = ["g6"]
  }
}
