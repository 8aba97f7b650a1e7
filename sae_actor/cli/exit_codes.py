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
"""Interrupted from the keyboard; as in shells, 128 + SIGINT."""

MEANINGS = {
    OK: "done",
    USAGE: "wrong usage, or a request that was refused",
    DATA: "damaged data",
    UNAVAILABLE: "port in use, or service, hub or model not reachable",
    SOFTWARE: "internal fault, no memory or disk, or the GPU lost",
    TEMPORARY: "the log is held by another process, or the service is busy",
    NO_PERMISSION: "not allowed: the token is missing or insufficient",
    CONFIGURATION: "configuration",
    INTERRUPTED: "interrupted from the keyboard",
}

_BY_CODE = {
    "sae_invalid": DATA,
    "model_load_failed": DATA,
    "unreachable": UNAVAILABLE,
    "not_ready": UNAVAILABLE,
    "draining": UNAVAILABLE,
    "deadline_exceeded": UNAVAILABLE,
    "read_only": UNAVAILABLE,
    "model_not_found": UNAVAILABLE,
    "sae_download_failed": UNAVAILABLE,
    "not_found_or_private": UNAVAILABLE,
    "internal": SOFTWARE,
    "out_of_memory": SOFTWARE,
    "disk_full": SOFTWARE,
    "mailbox_full": TEMPORARY,
    "quota_exceeded": TEMPORARY,
    "unauthorized": NO_PERMISSION,
    "forbidden": NO_PERMISSION,
    "gated": NO_PERMISSION,
}


def exit_code_of(error: SAEError) -> int:
    """The exit code for an error; a request that the service refuses counts as wrong usage."""
    return _BY_CODE.get(error.code, USAGE)
