"""Everything about recommending that needs no Kafka."""
