"""What is fair, who is next, who gives way, and why. Pure: no clock, no random numbers, no environment, no I/O."""
