"""General helpers for errors, files, locks, progress bars, random numbers and the environment."""
