"""Helpers without a subject of their own: errors, files, locks, progress, random numbers, environment."""
