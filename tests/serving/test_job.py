"""Batch jobs: every row once, by its own numbers alone, whatever happens in between."""
