"""Releases: their format, where they come from, and how they serve."""
