output "topic_arn" {
  description = "ARN of the topic that gets alarms."
  value       = aws_sns_topic.alarms.arn
}

output "alarms" {
  description = "Alarms by name: what they watch."
  value       = local.alarms
}
