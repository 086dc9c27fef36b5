"""The `fairtier` command: lazy click groups over the packages below."""
