"""The service as a process: settings checked, port bound, exit codes."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from ..api.server.listener import listen
from ..config import (
    ConfigurationError,
    Settings,
    check_exposure,
    data_folder,
    strangers,
    tls_files,
)
from ..errors import LogError
from ..telemetry import logs
from ..telemetry.traces import Tracing
from .adapters import OWN, Adapters
from .service import EX_UNAVAILABLE, Service


def run(
    settings: Settings,
    *,
    demo: bool = False,
    read_only: bool = False,
    accept_truncation: int | None = None,
    adapters: Adapters = OWN,
) -> int:
    """Serve until a signal or a fault ends it; the exit code (sysexits)."""
    logs.set_up(settings.server.log_format, settings.server.log_level)
    for each in strangers():
        logs.say(f"warning: {each}")
    for root in settings.hub.import_roots:
        if not Path(root).expanduser().is_dir():
            logs.say(f"warning: hub.import_roots: there is no folder {root}; imports from it are refused")
    try:
        check_exposure(settings)
        tls_files(settings)
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
                settings,
                listener,
                tracing,
                adapters,
                demo=demo,
                read_only=read_only,
                accept_truncation=accept_truncation,
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
    settings: Settings,
    listener: socket.socket,
    tracing: Tracing | None,
    adapters: Adapters,
    *,
    demo: bool,
    read_only: bool,
    accept_truncation: int | None,
) -> int:
    folder = data_folder(settings, demo=demo)
    log = await adapters.log.open(folder, read_only=read_only, accept_truncation=accept_truncation)
    try:
        service = Service(settings, folder, log, adapters, demo=demo, tracing=tracing)
        return await service.serve(listener, read_only=read_only)
    finally:
        await log.close()
