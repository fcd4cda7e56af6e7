"""Benchmarks: what the monitor finds, measured on real data with stated seeds."""
