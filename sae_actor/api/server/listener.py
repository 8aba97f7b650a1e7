"""The listening socket, and how many connections it may have."""

from __future__ import annotations

import os
import resource
import socket

from .protocol import SPARE

SPARE_FILES = 24
"""File descriptors left for files opened later: downloads, SAEs, the log."""
QUEUE = 2048
"""How many connections the system keeps until they are accepted."""
AT_ONCE = 8
"""How many connections are accepted in one iteration of the event loop, so that those over the limit are closed in
between."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. It is bound before anything else, so that a port in use is reported at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # TCP is named, because asyncio turns Nagle's algorithm (40 ms per answer) off only for sockets that name it.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(QUEUE)
    except OSError:
        listener.close()
        raise
    return listener


def room_for(wanted: int) -> tuple[int, int]:
    """How many connections there may be, and how many more while they are being refused.

    The limit on open files is raised to fit. If the system does not allow that, `wanted` is lowered instead.
    """
    others = len(os.listdir("/proc/self/fd")) + SPARE_FILES
    needed = wanted + SPARE + others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        limit = needed if soft == resource.RLIM_INFINITY else soft
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    spare = min(SPARE, max(1, (limit - others) // 4))
    return max(1, min(wanted, limit - others - spare)), spare
