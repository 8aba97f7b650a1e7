"""The socket, how many connections it may have, and the server on it with its two signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

import uvicorn

from .protocol import SPARE

SPARE_FILES = 24
"""For what is opened later: downloads, SAEs, the log's own."""
QUEUE = 2048
"""Connections that the system keeps until they are accepted."""
AT_ONCE = 8
"""Connections that are accepted before others have their turn, so that those beyond the bound are closed in between."""


def listen(host: str, port: int) -> socket.socket:
    """Bound before anything else, so that a port in use costs nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, because asyncio turns Nagle's algorithm off only for sockets whose protocol says TCP: 40 ms an answer.
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
    """How many connections there may be, and how many more for the time it takes to refuse them.

    The limit on open files is raised to fit; where the system does not allow that, `wanted` is lowered to it.
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


class HttpServer(uvicorn.Server):
    """First signal: graceful shutdown. Second: exit immediately; the log stays sound."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], None], handshake_seconds: float) -> None:
        super().__init__(config)
        self._handshake_seconds = handshake_seconds
        self._on_signal = on_signal

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As in uvicorn, except that TLS handshakes are bounded like requests, not by a minute."""
        if self.config.ssl is None:
            await super().startup(sockets)
        else:
            await self._start_tls(sockets or [])
        # asyncio takes one number for both, the queue and how many it accepts at once.
        for each in sockets or []:
            each.listen(QUEUE)

    async def _start_tls(self, sockets: list[socket.socket]) -> None:
        kind: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        make = partial(kind, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                make,
                sock=each,
                ssl=self.config.ssl,
                backlog=self.config.backlog,
                ssl_handshake_timeout=self._handshake_seconds,
                ssl_shutdown_timeout=self._handshake_seconds,
            )
            for each in sockets
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        # The handlers stay: closing down is a time to be interrupted as well.
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
        asyncio.get_running_loop().call_soon_threadsafe(self._on_signal)
