"""Figures and reports of runs and models."""
