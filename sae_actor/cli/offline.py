"""`log …`: the audit from the files of a data folder; no service, model or network.

Reading changes nothing. `import` and `redact` take the folder as a writer does: no service may run on it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec

from ..config import data_folder, load
from ..domain.events import PAYLOADS
from ..domain.evolve import evolve
from ..domain.projections import state_view
from ..domain.state import EMPTY
from ..errors import LogDamagedError, LogUnusableError
from ..eventlog.inspection import missing_log
from ..eventlog.offline import events_of, verify_folder
from . import bundles, exits, showing
from .arguments import LATER


def run(arguments: argparse.Namespace) -> int:
    """Raises `LogHeldError` while a service runs on the folder, and the other log errors."""
    if arguments.log_command in LATER:
        print(f"sae-actor: log {arguments.log_command} is not in this version yet", file=sys.stderr)
        return exits.USAGE
    folder = _folder(arguments, makes=arguments.log_command == "import")
    match arguments.log_command:
        case "verify":
            return asyncio.run(_verify(folder, arguments))
        case "state":
            return asyncio.run(_state(folder, arguments))
        case "export":
            return asyncio.run(bundles.export(folder, arguments))
        case "import":
            return asyncio.run(bundles.import_(folder, arguments))
        case "redact":
            return asyncio.run(bundles.redact(folder, arguments))
        case _:
            return asyncio.run(_show(folder, arguments))


def _folder(arguments: argparse.Namespace, *, makes: bool) -> Path:
    """The folder named, else the service's own by environment and file. Raises `LogUnusableError` where that is empty
    and the demo has left a log inside it, which is the one that was meant, unless a log is to be made."""
    flags = {"data.dir": arguments.data_dir} if arguments.data_dir is not None else {}
    settings = load(flags)
    folder = data_folder(settings)
    if makes:
        return folder
    if not settings.data.dir and missing_log(folder) and not missing_log(data_folder(settings, demo=True)):
        raise LogUnusableError(
            f"there is no log in {folder}; for the demo's: --data-dir {data_folder(settings, demo=True)}"
        )
    return folder


async def _verify(folder: Path, arguments: argparse.Namespace) -> int:
    verification = await verify_folder(folder)
    print(_json(verification) if arguments.json else showing.verification(msgspec.to_builtins(verification)))
    return exits.OK if verification.ok else exits.DATA


async def _show(folder: Path, arguments: argparse.Namespace) -> int:
    """The rows as they are stored, so that a damaged log can be looked at; `verify` judges."""
    types = arguments.types.split(",") if arguments.types is not None else None
    unknown = [name for name in types or () if name not in PAYLOADS]
    if unknown:
        print(f"sae-actor: {unknown[0]!r} is no type of event", file=sys.stderr)
        return exits.USAGE
    async for event in events_of(folder, arguments.after, types):
        print(_json(event) if arguments.json else showing.event(msgspec.json.decode(_json(event))))
    return exits.OK


async def _state(folder: Path, arguments: argparse.Namespace) -> int:
    """The fold of the log, of its sound part alone: what does not verify is no evidence of a state."""
    verification = await verify_folder(folder)
    if not verification.ok and (arguments.at is None or arguments.at >= (verification.first_bad or 0)):
        raise LogDamagedError(verification.detail or "the log does not verify", first_bad=verification.first_bad)
    at = verification.head.position if arguments.at is None else arguments.at
    state = EMPTY
    async for event in events_of(folder):
        if event.position <= at:
            state = evolve(state, event)
    if state.position != at:
        print(f"sae-actor: position {at} is past the head {verification.head.position}", file=sys.stderr)
        return exits.USAGE
    view = state_view(state)
    print(_json(view) if arguments.json else showing.state(view))
    return exits.OK


def _json(answer: object) -> str:
    return msgspec.json.encode(answer).decode()
