"""The candidate pipeline: hydrate, retrieve, merge, filter, score, select, on columns for a batch of requests."""
