"""Diffusion on spaces small enough to write down: every law is a vector, every claim a number."""
