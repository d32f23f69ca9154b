"""Figures and reports of pretraining runs and models."""
