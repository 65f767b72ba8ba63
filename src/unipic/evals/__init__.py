"""Benchmarks: what is asked of a model, its results as files, and their scores."""
