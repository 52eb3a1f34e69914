"""Estimates what a program needs and costs on machines that are not at hand, by compiling it."""
