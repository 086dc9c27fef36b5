"""What measures a host's GPUs: one interface, one module for each kind of GPU."""
