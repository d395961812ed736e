"""Shown slates, joined with the actions that followed."""
