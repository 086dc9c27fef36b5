"""What a demo's session runs: computes for a part of the time, and writes down what it really got.

Standard library only and run by path, so that it starts quickly. Usage: `demo_work.py LOAD SECONDS`. Every tenth of a
second it appends `milliseconds since 1970,nanoseconds` to `truth.csv`: the second number is the time for which it ran
or was ready to run (`/proc/self/schedstat`), the ground truth that the demo compares the ledger with.
"""

import os
import sys
import time

PERIOD_S = 0.05
NOTE_S = 0.1


def runnable_ns() -> int:
    """Time that this process ran or waited for a processor."""
    with open("/proc/self/schedstat") as stat:  # noqa: PTH123 - pathlib would double the time to start
        ran, waited = stat.read().split()[:2]
    return int(ran) + int(waited)


def work(load: float, seconds: float) -> None:
    """Compute for `load` of each period, until `seconds` have been computed or waited for; note it down on the way."""
    end = time.monotonic() + seconds
    noted = 0.0
    with open("truth.csv", "a", buffering=1) as truth:  # noqa: PTH123
        while (now := time.monotonic()) < end:
            if now - noted >= NOTE_S:
                noted = now
                truth.write(f"{time.time_ns() // 1_000_000},{runnable_ns()}\n")
            while time.monotonic() < now + load * PERIOD_S:
                pass
            if load < 1:
                time.sleep(max(0.0, now + PERIOD_S - time.monotonic()))
        truth.write(f"{time.time_ns() // 1_000_000},{runnable_ns()}\n")


if __name__ == "__main__":
    os.nice(10)  # the demo's sessions compute for show: the rest of the machine comes first
    print(f"computing at {float(sys.argv[1]):.0%} for {float(sys.argv[2]):g} s", flush=True)
    work(float(sys.argv[1]), float(sys.argv[2]))
