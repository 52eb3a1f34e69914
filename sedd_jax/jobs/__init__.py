"""Batch sampling jobs, and the pages that replay them."""
