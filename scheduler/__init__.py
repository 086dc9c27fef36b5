"""Owns the truth and the moment: events in, decisions and commands out."""
