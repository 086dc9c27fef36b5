"""`python -m fairtier`: the command, whichever interpreter runs."""

from fairtier.cli import main

main()
