"""A real Kafka broker and a real Redis server, started from wheels and jars, on loopback."""
