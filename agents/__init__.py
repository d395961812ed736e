"""Thin Faust agents, their wiring, and the command line."""
