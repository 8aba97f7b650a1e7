"""`python -m sae_actor`, and the command `sae-actor`."""

import os
import sys

from .cli import main as run
from .telemetry import libraries

SPINS = "1000"
"""How often a thread of torch's looks for work before it sleeps; OpenMP's own choice is 300,000, milliseconds."""


def main() -> int:
    """One command in a process of its own, whose standard error is for the user."""
    libraries.listen()
    _share_cores()
    return run()


def _share_cores() -> None:
    """Threads that wait for others leave their core to whoever has work, unless the environment says how they wait.

    Where other processes use the same cores, a step of a batch would take a hundred times as long: the thread that
    all wait for has no core while they spin. Read when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


if __name__ == "__main__":
    sys.exit(main())
