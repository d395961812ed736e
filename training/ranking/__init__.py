"""Ranking models: examples, fitting and calibration."""
