"""All recommendation logic that does not depend on Kafka."""
