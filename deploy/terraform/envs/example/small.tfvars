# To try it: one NAT gateway, no copies of what can be rebuilt, no traces, no MLflow.
size = {
  partitions          = 12
  nat_per_zone        = false
  interface_endpoints = []
  traces              = false
  container_insights  = false
  train_disk          = "50Gi"
  workers             = { replicas = 3, cpu = "1", memory = "2Gi", memory_limit = "4Gi", disk = "20Gi" }
  ranking             = { replicas = 0, cpu = "1", memory = "1Gi", gpu = false }
  kafka               = { instance_type = "kafka.m7g.large", volume_gb = 100, max_volume_gb = 500 }
  cache               = { node_type = "cache.t4g.small", nodes = 1 }

  pools = {
    on_demand_cpus = 32
    spot_cpus      = 16
    gpu_count      = 0
    cpu_families   = ["m7i", "m7a", "m6i"]
    gpu_families   = ["g6"]
  }
}
