"""Features of the ranker: one definition for serving, logging and training."""
