"""Partitions of the event stream and their tables."""
