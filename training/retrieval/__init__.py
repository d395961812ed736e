"""Retrieval models: the two towers, item-to-item weights and their validation."""
