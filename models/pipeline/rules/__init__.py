"""Merchandising rules in the pipeline: which items they match, what they bring, and how they move items of a slate."""
