"""Measures with their number of cases and their uncertainty."""
