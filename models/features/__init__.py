"""Features of the ranker: a single definition for serving, logging and training."""
