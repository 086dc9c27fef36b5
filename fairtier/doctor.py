"""What this machine offers, and how an instance on it is: a line for each check, with what was found and what to do.

Modules of ours are imported by the check that needs them, and only the standard library above: a foreign package under
one of our names, or half an installation, is to end as a line of the report, not as a traceback. For the same reason
daemons can call `foreign_names` before they import anything else.

Nothing here writes to what an instance uses: its records are opened so that not even its write-ahead log changes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from fairtier.doctor_instance import INSTANCE
from fairtier.doctor_machine import MACHINE
from fairtier.doctor_place import PLACE
from fairtier.finding import Finding, made


def examine(state: Path) -> list[Finding]:
    """Every check of this machine and of the instance on a state directory, in the order in which to read them.

    Args:
        state: absolute; need not exist.
    """
    findings = [*made(MACHINE), *made(PLACE, state)]
    usable = os.access(state, os.R_OK | os.X_OK) or not os.access(state, os.F_OK)
    return [*findings, *made(INSTANCE, state)] if usable else findings
