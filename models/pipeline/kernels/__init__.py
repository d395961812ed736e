"""Compiled loops over batches. Each query's result is the same in any batch."""
