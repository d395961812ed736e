"""Compiled loops of features over the candidates of a batch."""
