"""Measuring slates against what users did next."""
