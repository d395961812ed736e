"""Evaluation of slates against the users' next actions."""
