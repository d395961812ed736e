"""Releases: format, import, serving, and the record of their runs."""
