"""Loops over rows, compiled by Numba."""
