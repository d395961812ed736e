"""The catalogue in memory: its columns and vectors."""
