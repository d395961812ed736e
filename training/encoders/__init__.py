"""Encoders of text and images."""
