"""Copies of state for readers outside."""
