"""Progress of slow work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, dict[str, Any]], None]
"""progress("download_progress", {...}): may be dropped, is not logged, does not raise, works from any thread."""
