"""The client's commands: each sends one request to the service and shows the answer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..client import Client
from . import exit_codes
from .render import answers, presets
from .render.progress import Bar
from .render.shading import Shading
from .sources.choice import service

Answer = dict[str, Any]


def run(arguments: argparse.Namespace) -> int:
    """Raises the errors of `errors`, `UnreachableError` among them."""
    with service(arguments.url) as client:
        name = arguments.command
        if name in STREAMS:
            STREAMS[name](client, arguments)
        else:
            answer, shown = COMMANDS[f"preset {arguments.preset_command}" if name == "preset" else name]
            _print(arguments, answer(client, arguments), shown)
    return exit_codes.OK


def _print(arguments: argparse.Namespace, answer: Any, shown: Callable[[Any], str]) -> None:
    print(json.dumps(answer, ensure_ascii=False) if arguments.json else shown(answer), flush=True)


def fit(client: Client, arguments: argparse.Namespace) -> Any:
    sae_id = None if arguments.sae is None else client.find(arguments.sae)
    return client.fit(arguments.model, sae_id, arguments.revision, arguments.dtype, arguments.quantization)


def download(client: Client, arguments: argparse.Namespace) -> Any:
    with Bar(sys.stderr) as bar:
        return client.download(
            arguments.repository,
            arguments.path,
            arguments.revision,
            force=arguments.force,
            progress=lambda progress: bar.show(*answers.progress(progress)),
        )


def attach(client: Client, arguments: argparse.Namespace) -> Any:
    sae_id = client.find(arguments.sae)
    exclude = None if arguments.exclude is None else _excluded(arguments.exclude)
    return client.attach(sae_id, arguments.layer, mode=arguments.mode, replace=arguments.replace, exclude=exclude)


def steer(client: Client, arguments: argparse.Namespace) -> Any:
    exclude = _excluded(arguments.exclude or ["sink"])
    edits = _edits(arguments)
    return client.steer(client.find(arguments.sae), edits, enabled=not arguments.disable, exclude=exclude)


def _edits(arguments: argparse.Namespace) -> list[Answer]:
    settings = {"method": arguments.method, "positions": arguments.positions, "unit": arguments.unit}
    return [{"feature": feature, "strength": strength, **settings} for feature, strength in arguments.edits]


def save_preset(client: Client, arguments: argparse.Namespace) -> Any:
    exclude = tuple(_excluded(arguments.exclude or ["sink"]))
    steering = tuple({**each, "exclude": exclude} for each in _edits(arguments))
    sae = {"sae_id": client.find(arguments.sae), "mode": arguments.mode, "steering": steering}
    return client.save_preset(arguments.name, [sae], arguments.description)


def _excluded(given: Sequence[str]) -> list[str]:
    return [each for each in given if each != "none"]


def generate(client: Client, arguments: argparse.Namespace) -> None:
    """Prints the text as it is generated; with `--json` the whole answer at the end, with `--shade` the text then."""
    prompt: Any = arguments.prompt
    if arguments.chat:
        prompt = [{"role": "user", "content": arguments.prompt}]
        if arguments.system is not None:
            prompt.insert(0, {"role": "system", "content": arguments.system})
    given = {name: getattr(arguments, name) for name in ("max_tokens", "temperature", "top_p", "seed", "stop")}
    options: Answer = {name: value for name, value in given.items() if value is not None}
    sae: Answer | None = {"baseline": True} if arguments.baseline else None
    if arguments.preset is not None:
        sae = {"preset": arguments.preset}
    shading: Shading | None = None
    if arguments.shade is not None:
        prefix, feature = arguments.shade
        named = {"feature": feature, **({} if prefix is None else {"sae_id": client.find(prefix)})}
        sae, shading = {**(sae or {}), "details": True, "details_of": [named]}, Shading(feature, named.get("sae_id"))
    if arguments.json:
        _print(arguments, client.generate(prompt, sae=sae, **options), str)
        return
    thinking = False
    warnings: list[str] = []
    for chunk in client.generate(prompt, stream=True, sae=sae, **options):
        # A pipe gets only the answer.
        if thought := answers.thought(chunk):
            print(thought, end="", file=sys.stderr, flush=True)
            thinking = True
        if (said := answers.piece(chunk)) and thinking:
            print("\n", file=sys.stderr, flush=True)
            thinking = False
        if shading is None:
            print(said, end="", flush=True)
        else:
            shading.add(said, chunk.get("sae") or {})
        warnings += (chunk.get("sae") or {}).get("warnings") or ()
    print("" if shading is None else shading.drawn(), flush=True)
    if shading is not None:
        print(answers.plain(shading.legend()), file=sys.stderr, flush=True)
    for each in warnings:
        print(answers.plain(f"sae-actor: warning: {each}"), file=sys.stderr, flush=True)


def events(client: Client, arguments: argparse.Namespace) -> None:
    """Follows until interrupted, or until the service ends."""
    types = arguments.types.split(",") if arguments.types else ()
    for event in client.events(arguments.after, types):
        if event.id is not None:
            _print(arguments, event.data, answers.event)
        elif not arguments.json:
            print(answers.passing(event), file=sys.stderr, flush=True)


STREAMS: dict[str, Callable[[Client, argparse.Namespace], None]] = {"generate": generate, "events": events}
"""Commands that print while they go on."""
COMMANDS: dict[str, tuple[Callable[[Client, argparse.Namespace], Any], Callable[[Any], str]]] = {
    "status": (lambda client, _: client.status(), answers.status),
    "catalog": (lambda client, arguments: client.catalog(arguments.repository, arguments.revision), answers.catalog),
    "fit": (fit, answers.fit),
    "download": (download, answers.downloaded),
    "list": (lambda client, _: client.list(), answers.saes),
    "attach": (attach, answers.attached),
    "detach": (lambda client, arguments: client.detach(client.find(arguments.sae)), answers.freed),
    "delete": (lambda client, arguments: client.delete(client.find(arguments.sae)), answers.freed),
    "steer": (steer, answers.steering),
    "preset list": (lambda client, _: client.presets(), presets.presets),
    "preset save": (save_preset, presets.saved),
    "preset delete": (lambda client, arguments: client.delete_preset(arguments.name), presets.deleted),
}
"""Command → the answer of the service, and how a person is shown it."""
