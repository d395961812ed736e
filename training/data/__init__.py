"""Training data: corpora, events and slates."""
