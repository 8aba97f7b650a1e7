"""`log …`: the audit from the files of a data folder; no service or network, and no model except for `reproduce`.

Reading changes nothing. `import` and `redact` take the folder as a writer does: no service may run on it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from ..config import data_folder, load
from ..domain.events import PAYLOADS, Event
from ..domain.evolve import evolve
from ..domain.state import EMPTY, State
from ..domain.views.difference import difference
from ..domain.views.explanation import Explaining
from ..domain.views.resources import state_view
from ..errors import BadRequestError, LogDamagedError, LogUnusableError, NotFoundError
from ..eventlog import events_of, verify_folder
from ..eventlog.inspection import missing_log
from ..ports import Head, Verification
from . import exit_codes, log_bundles, log_histories
from .render import answers as rendered
from .render import difference as differences
from .render import explanation


def run(arguments: argparse.Namespace) -> int:
    """Raises `LogHeldError` while a service runs on the folder, and the other log errors."""
    folder = _folder(arguments, makes=arguments.log_command == "import")
    match arguments.log_command:
        case "verify":
            return asyncio.run(_verify(folder, arguments))
        case "state":
            return asyncio.run(_state(folder, arguments))
        case "diff":
            return asyncio.run(_diff(folder, arguments))
        case "explain":
            return asyncio.run(_explain(folder, arguments))
        case "reproduce":
            from . import log_reproduce  # noqa: PLC0415 - only this command needs the hub

            return asyncio.run(log_reproduce.run(folder, arguments))
        case "export":
            return log_bundles.export(folder, arguments)
        case "import":
            return log_bundles.import_(folder, arguments)
        case "redact":
            return log_bundles.redact(folder, arguments)
        case _:
            return asyncio.run(_show(folder, arguments))


def _folder(arguments: argparse.Namespace, *, makes: bool) -> Path:
    """The named folder, else the service's own by environment and file. Raises `LogUnusableError` if that is empty and
    the demo has a log inside it, which was probably meant, unless a log is to be created."""
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
    verification = _told(await verify_folder(folder, [Head(*each) for each in arguments.head]))
    print(_json(verification) if arguments.json else rendered.verification(msgspec.to_builtins(verification)))
    return exit_codes.OK if verification.ok else exit_codes.DATA


def _told(verification: Verification) -> Verification:
    """An unproven log must not look complete to a reader of `ok` alone."""
    return msgspec.structs.replace(verification, ok=False) if verification.unproven else verification


async def _show(folder: Path, arguments: argparse.Namespace) -> int:
    """The rows as they are stored, so that a damaged log can be looked at, with a warning."""
    types = arguments.types.split(",") if arguments.types is not None else None
    unknown = [name for name in types or () if name not in PAYLOADS]
    if unknown:
        print(f"sae-actor: {unknown[0]!r} is not an event type", file=sys.stderr)
        return exit_codes.USAGE
    verification = await verify_folder(folder)
    _warn(verification)
    async for event in events_of(folder, arguments.after, types):
        if _asked_for(event, arguments):
            print(_json(event) if arguments.json else rendered.event(_fields(event)))
    return exit_codes.OK


def _warn(verification: Verification) -> None:
    """Warn on standard error why the log does not prove everything that happened."""
    if not verification.ok or verification.unproven:
        found = rendered.verification(msgspec.to_builtins(verification))
        print(f"sae-actor: warning: this log is {found}", file=sys.stderr)


def _fields(event: Event) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.structs.asdict(event)
    return {**fields, "data": _data(event)}


def _data(event: Event) -> Any:
    """The payload; in a damaged log it may not be JSON, and is text then."""
    try:
        return msgspec.json.decode(event.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return bytes(event.data).decode(errors="replace")


def _asked_for(event: Event, arguments: argparse.Namespace) -> bool:
    return (
        arguments.command_id in (None, event.command_id)
        and arguments.principal in (None, event.principal)
        and (arguments.since is None or arguments.since <= event.time)
        and (arguments.until is None or event.time <= arguments.until)
        and (arguments.sae is None or _names(_data(event), arguments.sae))
    )


def _names(data: Any, sae: str) -> bool:
    """Whether a payload of any type and version names an SAE whose id begins like this."""
    if isinstance(data, list):
        return any(_names(each, sae) for each in data)
    if not isinstance(data, dict):
        return False
    ids = [data.get("sae_id"), *(data.get("replaces") or ())]
    return any(isinstance(each, str) and each.startswith(sae) for each in ids) or _names([*data.values()], sae)


async def _state(folder: Path, arguments: argparse.Namespace) -> int:
    (state,) = await _states(folder, [arguments.at])
    view = state_view(state)
    print(_json(view) if arguments.json else rendered.state(msgspec.to_builtins(view)))
    return exit_codes.OK


async def _diff(folder: Path, arguments: argparse.Namespace) -> int:
    if arguments.other is not None:
        return await log_histories.compare(folder, arguments.other, as_json=arguments.json)
    before, after = await _states(folder, [arguments.before, arguments.after])
    view = difference(before, after)
    print(_json(view) if arguments.json else differences.difference(view))
    return exit_codes.OK


async def _explain(folder: Path, arguments: argparse.Namespace) -> int:
    """From the log's sound part only. Raises `NotFoundError`, and `LogDamagedError` if that part does not hold the
    whole record of the generation."""
    verification = await verify_folder(folder)
    wanted = Explaining(generation_id=arguments.generation_id, live=False)
    async with aclosing(events_of(folder)) as events:
        async for event in events:
            if event.position > _sound(verification):
                break
            wanted.feed(event)
            if wanted.complete:
                break
    if not verification.ok and not wanted.complete:
        raise LogDamagedError(verification.detail or "the log does not verify", first_bad=verification.first_bad)
    if not wanted.views:
        lost = ", ".join(map(str, wanted.erased))
        hint = f"; the payloads of events {lost}, beginnings of texts, were erased" if lost else ""
        raise NotFoundError(f"the log has no generation {arguments.generation_id}{hint}")
    view = {**msgspec.to_builtins(next(iter(wanted.views.values()))), "log": _told(verification)}
    print(_json(view) if arguments.json else explanation.explanation(msgspec.to_builtins(view)))
    return exit_codes.OK


async def _states(folder: Path, moments: Sequence[int | str | None]) -> list[State]:
    """The states at positions, at times, or (None) at the head: the fold of the log's sound part only, since the
    rest is not evidence. At a time: after the last event written at that time or before.

    Raises `LogDamagedError` beyond the sound part, `BadRequestError` for a position after the head.
    """
    verification = await verify_folder(folder)
    if verification.unproven:
        _warn(verification)
    sound = _sound(verification)
    farthest = max((moment for moment in moments if isinstance(moment, int)), default=0)
    if verification.ok and farthest > sound:
        raise BadRequestError(f"position {farthest} is past the head {sound}")
    # A clock may have gone back, so only the whole log shows which event was the last one before a time.
    if farthest > sound or (not verification.ok and not all(isinstance(moment, int) for moment in moments)):
        raise LogDamagedError(verification.detail or "the log does not verify", first_bad=verification.first_bad)
    states, state = [EMPTY] * len(moments), EMPTY
    async with aclosing(events_of(folder)) as events:
        async for event in events:
            if event.position > sound:
                break
            state = evolve(state, event)
            for i, moment in enumerate(moments):
                if _reached(event, moment):
                    states[i] = state
    return states


def _reached(event: Event, moment: int | str | None) -> bool:
    if isinstance(moment, int):
        return event.position <= moment
    return moment is None or event.time <= moment


def _sound(verification: Verification) -> int:
    """The last position that verifies; below 0 if no single event can be read."""
    return verification.head.position if verification.ok else (verification.first_bad or 0) - 1


def _json(answer: object) -> str:
    return msgspec.json.encode(answer).decode(errors="replace")  # the rows of a damaged log hold anything
