"""Data to learn from: corpora, events and slates."""
