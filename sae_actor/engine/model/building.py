"""Modules of a model, as far as there are so many: settings can ask for any number of them, in many ways."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ...errors import ModelLoadError

MOST_MODULES = 100_000
"""Of a model: made in seconds. The largest ones that are known have a tenth of it."""


class _Building(threading.local):
    """Of a thread."""

    left: int | None = None
    """Modules that it may still make; None: any number."""


_building = _Building()


@contextmanager
def bounded() -> Iterator[None]:
    """Let this thread make the modules of one model. `ModelLoadError`, from their constructors, for too many."""
    _building.left = MOST_MODULES
    try:
        yield
    finally:
        _building.left = None


def _count(_: nn.Module, __: str, ___: nn.Module | None) -> None:
    if _building.left is None:
        return
    _building.left -= 1
    if _building.left < 0:
        raise ModelLoadError(f"the model's settings ask for more than {MOST_MODULES} modules")


# For good: it would be taken away while another thread goes through the hooks.
register_module_module_registration_hook(_count)
