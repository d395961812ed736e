output "values" {
  description = "Values for `helm upgrade --install riffle deploy/helm/riffle --values`, as YAML."
  value       = yamlencode(local.values)
}
