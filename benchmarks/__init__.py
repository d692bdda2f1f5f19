"""Benchmarks: each file answers one question about speed, prints its circumstances, and verifies its result."""
