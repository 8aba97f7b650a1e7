"""The HTTP server, and what SIGTERM and SIGINT do to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

import uvicorn

from .listener import QUEUE


class HttpServer(uvicorn.Server):
    """`on_signal` gets SIGHUP, and the first of SIGINT and SIGTERM; a second of these exits immediately, and the log
    stays sound. The server ends when `should_exit` is set."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[int], None], handshake_seconds: float) -> None:
        super().__init__(config)
        self._ending = False
        self._handshake_seconds = handshake_seconds
        self._on_signal = on_signal

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As in uvicorn, except that a TLS handshake may take as long as a request, not a minute."""
        if self.config.ssl is None:
            await super().startup(sockets)
        else:
            await self._start_tls(sockets or [])
        # asyncio takes one number for both the queue and how many it accepts at once; here they differ.
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
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.handle_exit)
        # The handlers stay, so that a second signal also works while the service closes.
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        if sig != signal.SIGHUP:
            if self._ending:
                os._exit(128 + sig)
            self._ending = True
        asyncio.get_running_loop().call_soon_threadsafe(self._on_signal, sig)
