"""What the ports of `scheduler.ports` are in the world: SQL, Redis, memory."""
