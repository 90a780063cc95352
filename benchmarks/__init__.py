"""Measurements: each module is one question, runs alone, and prints one table with ratios."""
