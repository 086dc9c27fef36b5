"""Trace files: our own CSV, and one reader for each public format."""
