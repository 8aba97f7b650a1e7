"""git-lfs pointer files: what a clone holds in place of a large file until `git lfs pull` fetches it."""

from __future__ import annotations

import re
from pathlib import Path

MAX_POINTER_BYTES = 1024
"""No pointer is longer, says its specification."""

REMEDY = "is a git-lfs pointer, not the file itself: run `git lfs pull` where it was cloned, or fetch it again"
"""The message after the name of one."""

_POINTER = re.compile(
    rb"version https?://(git-lfs\.github\.com/spec|hawser\.github\.com/spec|git-media\.io)/v[0-9][^\n]*\n(.*\n)?oid ",
    re.DOTALL,
)


def is_pointer(content: bytes) -> bool:
    """Whether these are the bytes of a whole pointer file."""
    return len(content) <= MAX_POINTER_BYTES and _POINTER.match(content) is not None


def pointer_at(path: Path) -> bool:
    """Whether the file at `path` is a pointer; OSError if it cannot be read."""
    with path.open("rb") as file:
        return is_pointer(file.read(MAX_POINTER_BYTES + 1))
