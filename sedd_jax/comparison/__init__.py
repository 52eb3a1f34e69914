"""Rows trained alike and scored alike, in one table."""
