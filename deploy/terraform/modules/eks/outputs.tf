output "cluster_name" {
  description = "Name of the cluster."
  value       = aws_eks_cluster.this.name
}

output "security_group_id" {
  description = "Group of all nodes and pods: the source of connections to Kafka, the store and the database."
  value       = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
}

output "manifests" {
  description = "What the cluster needs before the chart: namespace, storage class, pools of nodes, and the collector of traces, for kubectl apply."
  value       = local.manifests
}

output "node_pools" {
  description = "Names of the pools of nodes, for the chart's node selectors."
  value       = { on_demand = "riffle-on-demand", spot = "riffle-spot", gpu = "riffle-gpu" }
}
