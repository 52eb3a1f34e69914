"""Figures as a person reads them: tables, plots, pages."""
