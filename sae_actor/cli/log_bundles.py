"""`log import`, `log redact`: make a log of an export, erase a payload for good; what `log export` tells."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import msgspec

from .. import eventlog
from ..errors import LogUnusableError
from ..eventlog.inspection import missing_log
from ..ports import Head
from ..ports.clock import SystemClock
from . import exit_codes
from .render import answers


def tell_export(head: Head, arguments: argparse.Namespace) -> None:
    to: Path = arguments.to
    if arguments.json:
        print(_json({"to": answers.name(to.absolute()), "events": head.position, "head": head}))
        return
    print(f"{answers.counted(head.position)} exported to {answers.plain(answers.name(to))}")
    print(f"verify them with any Python: python verify.py --head {head.position}:{head.hash}")


def import_(folder: Path, arguments: argparse.Namespace) -> int:
    """Raises `LogUnusableError` if the folder has a log, `NotFoundError` if there is no such bundle, and
    `LogDamagedError` if it is not a bundle or does not verify; then the folder has no log."""
    head = asyncio.run(eventlog.import_bundle(arguments.bundle, folder))
    if arguments.json:
        print(_json({"data_dir": answers.name(folder), "events": head.position, "head": head}))
    else:
        events = answers.counted(head.position)
        print(f"{events} imported into {answers.plain(answers.name(folder))}, head {head.position} {head.hash}")
    return exit_codes.OK


def redact(folder: Path, arguments: argparse.Namespace) -> int:
    """Raises `NotFoundError` and `BadRequestError` for what cannot be redacted, and the log errors."""
    if missing_log(folder):  # a writer would create it; here there is nothing to erase
        raise LogUnusableError(f"there is no log in {folder}")
    from ..runs import RunFolder  # noqa: PLC0415 — more than other commands need

    time, forget = SystemClock().now(), RunFolder(folder / "runs").forget_generation
    event = asyncio.run(eventlog.redact(folder, arguments.position, arguments.why, time=time, forget=forget))
    if arguments.json:
        print(_json(event))
    else:
        print(f"the payload of event {arguments.position} is erased   [position {event.position}]")
    return exit_codes.OK


def _json(answer: object) -> str:
    return msgspec.json.encode(answer).decode()
