"""Slates that were shown, joined with what followed."""
