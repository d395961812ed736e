"""Evaluation of the pipeline that serves. Nothing here imports Kafka, and nothing that serves imports this."""
