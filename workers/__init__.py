"""The GPU host: sample, attribute, report, obey. Of ours it imports `policies.model` only."""
