"""`python -m sae_actor`."""

import sys

from .cli import main

sys.exit(main())
