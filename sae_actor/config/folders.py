"""Where the service keeps its data, and the demo its model."""

from __future__ import annotations

import os
from pathlib import Path

from .settings import Settings


def data_folder(settings: Settings, *, demo: bool = False) -> Path:
    """`[data] dir`, absolute; where it is empty the default folder, for the demo the one inside it."""
    if settings.data.dir:
        return Path(settings.data.dir).expanduser().absolute()
    default = _xdg("XDG_DATA_HOME", ".local/share") / "sae-actor"
    return default / "demo" if demo else default


def demo_model_folder(settings: Settings) -> Path:
    """Where the demo's model is prepared and kept, whatever data folder the demo runs in."""
    if settings.demo.model_dir:
        return Path(settings.demo.model_dir).expanduser().absolute()
    return _xdg("XDG_CACHE_HOME", ".cache") / "sae-actor" / "demo"


def _xdg(variable: str, fallback: str) -> Path:
    """The base directory; a relative value counts as none, as its specification asks."""
    value = os.environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else Path.home() / fallback
