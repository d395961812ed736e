"""Compiled loops of the stream's state (Numba): persons' records, item statistics, co-visitation."""
