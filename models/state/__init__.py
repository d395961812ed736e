"""Stored state of users, items and pairs: rows, Bloom filters and compiled loops over them."""
