"""Ranks: launchers, rendezvous, process group, collectives, consistency checks, rank failures, watchdog."""
