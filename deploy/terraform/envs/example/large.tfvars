# As medium, with ranking on GPUs, and larger brokers, stores and workers.
size = {
  partitions          = 48
  nat_per_zone        = true
  interface_endpoints = ["ecr.api", "ecr.dkr", "logs", "sts"]
  traces              = true
  container_insights  = true
  train_disk          = "500Gi"
  workers             = { replicas = 12, cpu = "4", memory = "8Gi", memory_limit = "16Gi", disk = "200Gi" }
  ranking             = { replicas = 3, cpu = "3", memory = "8Gi", gpu = true }
  kafka               = { instance_type = "kafka.m7g.2xlarge", volume_gb = 2000, max_volume_gb = 8000 }
  cache               = { node_type = "cache.r7g.xlarge", nodes = 3 }
  metadata            = { instance_class = "db.m7g.large", multi_az = true }

  pools = {
    on_demand_cpus = 256
    spot_cpus      = 64
    gpu_count      = 8
    cpu_families   = ["m7i", "m7a", "m6i"]
    gpu_families   = ["g6"]
  }
}
