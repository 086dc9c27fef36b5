"""Measured figures: `python -m benchmarks NAME [-o json]`."""
