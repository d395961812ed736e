"""Datasets as people bring them: a folder."""
