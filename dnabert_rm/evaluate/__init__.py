"""Benchmark suites: fine-tuning on every data set of GUE, result tables."""
