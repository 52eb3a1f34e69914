"""Samples for others: prompts as text, batch jobs, pages that show how a text came about."""
