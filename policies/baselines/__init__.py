"""Policies to compare with, behind the same interface as the fair-share policy."""
