"""Exact distributions, objectives and likelihoods by enumeration."""
