"""Processes, checkpoints and schedules of training."""
