"""Exit codes, after sysexits.h."""

from __future__ import annotations

from ..errors import SAEError

OK = 0
USAGE = 64
DATA = 65
UNAVAILABLE = 69
SOFTWARE = 70
TEMPORARY = 75
NO_PERMISSION = 77
CONFIGURATION = 78
INTERRUPTED = 130
"""Ended by the keyboard, as shells count it: 128 + SIGINT."""

_BY_CODE = {
    "sae_invalid": DATA,
    "model_load_failed": DATA,
    "unreachable": UNAVAILABLE,
    "not_ready": UNAVAILABLE,
    "deadline_exceeded": UNAVAILABLE,
    "read_only": UNAVAILABLE,
    "model_not_found": UNAVAILABLE,
    "sae_download_failed": UNAVAILABLE,
    "not_found_or_private": UNAVAILABLE,
    "internal": SOFTWARE,
    "out_of_memory": SOFTWARE,
    "disk_full": SOFTWARE,
    "mailbox_full": TEMPORARY,
    "unauthorized": NO_PERMISSION,
    "forbidden": NO_PERMISSION,
    "gated": NO_PERMISSION,
}


def exit_code_of(error: SAEError) -> int:
    """What the process leaves with; a request that the service refuses as such counts as wrong usage."""
    return _BY_CODE.get(error.code, USAGE)
