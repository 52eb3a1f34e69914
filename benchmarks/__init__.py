"""Repeatable measurements: `python -m benchmarks.NAME`."""
