"""The service as a process: it binds the port and returns the exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from ..api.server.listener import listen
from ..config import Deployment
from ..telemetry import logs
from ..telemetry.traces import Tracing
from .adapters import OWN, Adapters
from .service import EX_UNAVAILABLE, Service


def run(
    deployment: Deployment,
    *,
    read_only: bool = False,
    accept_truncation: int | None = None,
    adapters: Adapters = OWN,
    reread: Callable[[], Deployment] | None = None,
) -> int:
    """Serve until a signal or a failure ends it; the exit code (sysexits). The caller has set up `telemetry.logs`.

    reread: reads the settings again at SIGHUP; None: there is nothing to be read.

    Raises `LogError` and `ConfigurationError`.
    """
    settings = deployment.settings
    for root in settings.hub.import_roots:
        if not Path(root).expanduser().is_dir():
            logs.say(f"warning: hub.import_roots: there is no folder {root}; imports from it are refused")
    tracing = Tracing() if settings.server.opentelemetry else None
    try:
        listener = listen(settings.server.host, settings.server.port)
    except OSError as error:
        logs.say(f"cannot listen on {settings.server.host}:{settings.server.port}: {error.strerror}")
        return EX_UNAVAILABLE

    async def serve() -> int:
        log = await adapters.log.open(deployment.folder, read_only=read_only, accept_truncation=accept_truncation)
        try:
            return await Service(deployment, log, adapters, tracing, reread).serve(listener, read_only=read_only)
        finally:
            await log.close()

    with listener:
        try:
            return asyncio.run(serve())
        finally:
            if tracing is not None:
                tracing.close()
