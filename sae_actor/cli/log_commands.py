"""`log …`: the audit of a log, from the files of a data folder or from the service that writes it.

Of the commands on files none needs a service or network, and none a model except `reproduce`. Reading changes nothing.
`import` and `redact` take the folder as a writer does: no service may run on it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import aclosing
from typing import Any

import msgspec

from ..domain.events import PAYLOADS, Event
from ..ports import Head
from . import exit_codes, log_bundles, log_histories
from .render import answers as rendered
from .render import difference as differences
from .render import explanation, methods
from .sources.choice import chosen, folder_of, stopped_folder
from .sources.folder import warn
from .sources.source import LogSource


def run(arguments: argparse.Namespace) -> int:
    """Raises `LogHeldError` while a service runs on a named folder, and the other log errors."""
    match arguments.log_command:
        case "reproduce":
            from . import log_reproduce  # noqa: PLC0415 - only this command needs the hub

            return asyncio.run(log_reproduce.run(stopped_folder(arguments), arguments))
        case "import":
            return log_bundles.import_(folder_of(arguments), arguments)
        case "redact":
            return log_bundles.redact(stopped_folder(arguments), arguments)
        case "diff" if arguments.other is not None:
            return asyncio.run(
                log_histories.compare(stopped_folder(arguments), arguments.other, as_json=arguments.json)
            )
        case name:
            with chosen(arguments) as source:
                return asyncio.run(_ASKING[name](source, arguments))


async def _verify(source: LogSource, arguments: argparse.Namespace) -> int:
    verification = await source.verify([Head(*each) for each in arguments.head])
    print(_json(verification) if arguments.json else rendered.verification(msgspec.to_builtins(verification)))
    return exit_codes.OK if verification.ok else exit_codes.DATA


async def _show(source: LogSource, arguments: argparse.Namespace) -> int:
    """The rows as they are stored, so that a damaged log can be looked at, with a warning."""
    types = arguments.types.split(",") if arguments.types is not None else None
    unknown = [name for name in types or () if name not in PAYLOADS]
    if unknown:
        print(f"sae-actor: {unknown[0]!r} is not an event type", file=sys.stderr)
        return exit_codes.USAGE
    warn(await source.verify(full=False))
    async with aclosing(source.events(arguments.after, types)) as events:
        async for event in events:
            if _asked_for(event, arguments):
                print(_json(event) if arguments.json else rendered.event(_fields(event)))
    return exit_codes.OK


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


async def _state(source: LogSource, arguments: argparse.Namespace) -> int:
    view = await source.state(arguments.at)
    print(_json(view) if arguments.json else rendered.state(view))
    return exit_codes.OK


async def _diff(source: LogSource, arguments: argparse.Namespace) -> int:
    view = await source.diff(arguments.before, arguments.after)
    print(_json(view) if arguments.json else differences.difference(view))
    return exit_codes.OK


async def _explain(source: LogSource, arguments: argparse.Namespace) -> int:
    """Of a tag each answer, in the order in which they began."""
    first = True
    async with aclosing(source.explain(arguments.of)) as views:
        async for view in views:
            if arguments.json:
                print(_json(methods.methods(view) if arguments.methods else view))
                continue
            print("" if first else "\n", end="")
            print(methods.paragraph(view) if arguments.methods else explanation.explanation(view))
            first = False
    return exit_codes.OK


async def _export(source: LogSource, arguments: argparse.Namespace) -> int:
    head = await source.export(arguments.to)
    log_bundles.tell_export(head, arguments)
    return exit_codes.OK


_ASKING = {
    "show": _show,
    "verify": _verify,
    "state": _state,
    "diff": _diff,
    "explain": _explain,
    "export": _export,
}
"""What a service answers too."""


def _json(answer: object) -> str:
    return msgspec.json.encode(answer).decode(errors="replace")  # the rows of a damaged log hold anything
