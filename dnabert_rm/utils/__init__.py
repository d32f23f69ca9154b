"""General helpers: errors, files, locks, progress bars, random numbers, environment."""
