"""Replay of history through the serving pipeline."""
