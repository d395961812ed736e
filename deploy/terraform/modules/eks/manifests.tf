locals {
  manifests = templatefile("${path.module}/cluster.yaml.tftpl", {
    namespace    = var.namespace
    architecture = var.architecture
    pools        = var.pools
    collector    = var.collector
  })
}
