"""The catalogue in memory, as columns and vectors."""
