"""The production core run on traces and generated workloads, in virtual time."""
