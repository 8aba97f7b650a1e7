"""The service as a process: port bound, exit codes."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from ..api.server.listener import listen
from ..config import ConfigurationError, Deployment
from ..errors import LogError
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
) -> int:
    """Serve until a signal or a fault ends it; the exit code (sysexits). `telemetry.logs` is set up."""
    settings = deployment.settings
    for root in settings.hub.import_roots:
        if not Path(root).expanduser().is_dir():
            logs.say(f"warning: hub.import_roots: there is no folder {root}; imports from it are refused")
    try:
        tracing = Tracing() if settings.server.opentelemetry else None
        listener = listen(settings.server.host, settings.server.port)
    except ConfigurationError as error:
        return _say(str(error), error.exit_code)
    except OSError as error:
        where = f"{settings.server.host}:{settings.server.port}"
        return _say(f"cannot listen on {where}: {error.strerror}", EX_UNAVAILABLE)
    with listener:
        try:
            service = _serve(
                deployment, listener, tracing, adapters, read_only=read_only, accept_truncation=accept_truncation
            )
            return asyncio.run(service)
        except LogError as error:
            return _say(error.detail, error.exit_code)
        except ConfigurationError as error:
            return _say(str(error), error.exit_code)
        finally:
            if tracing is not None:
                tracing.close()


def _say(message: str, exit_code: int) -> int:
    logs.say(message)
    return exit_code


async def _serve(
    deployment: Deployment,
    listener: socket.socket,
    tracing: Tracing | None,
    adapters: Adapters,
    *,
    read_only: bool,
    accept_truncation: int | None,
) -> int:
    log = await adapters.log.open(deployment.folder, read_only=read_only, accept_truncation=accept_truncation)
    try:
        service = Service(deployment, log, adapters, tracing)
        return await service.serve(listener, read_only=read_only)
    finally:
        await log.close()
