"""`python -m benchmarks NAME [-o json]`: measure the figures of one area; exit 1 when a bound is missed.

Traces are read from the folder named by FAIRTIER_SHARED, by default `shared` beside this project's folder.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys

from benchmarks.figure import Figure

NAMES = ("simulator", "core", "start", "live", "fairness", "population", "shared", "split")


def main() -> int:
    """Run one area and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measured figures with their bounds.")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    figures: list[Figure] = importlib.import_module(f"benchmarks.{options.name}").measure()
    if options.output == "json":
        print(json.dumps({"name": options.name, "figures": [figure.as_dict() for figure in figures]}, indent=1))
    else:
        for figure in figures:
            print(figure.line())
    return 0 if all(figure.ok for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
