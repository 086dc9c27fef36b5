"""Where sessions come from: trace files and generated users that react."""
