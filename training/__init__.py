"""Training: from an archive or a dataset to a judged release. It imports no Kafka, and nothing that serves imports it."""
