"""Run-time changes to third-party code, one file per library.

The docstring of each patch says what is changed, the reason, and the upstream issue or source file.
"""
