"""`python -m sae_actor`, and the command `sae-actor`."""

import sys

from .cli import main as run
from .telemetry import libraries


def main() -> int:
    """One command in a process of its own, whose standard error is for the user."""
    libraries.listen()
    return run()


if __name__ == "__main__":
    sys.exit(main())
