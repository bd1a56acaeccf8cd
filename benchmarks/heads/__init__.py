"""Benchmarks of what heads learn from."""
