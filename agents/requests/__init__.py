"""Requests for slates: admission, batching and replies."""
