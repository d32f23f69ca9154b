"""Run-time changes to third-party code, one file per library.

The docstring of each patch gives the change, the reason, and the upstream issue or source file.
"""
