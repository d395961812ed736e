"""Training: datasets, encoders, models, evaluation. Nothing here yet imports Kafka, and nothing that serves imports this."""
