"""`token NAME ROLE`: a token and its line of the tokens file. `token list`: the grants in the settings, without the
tokens or their digests."""

from __future__ import annotations

import argparse
import dataclasses
import json
import secrets
from collections.abc import Iterator
from typing import Any

from ..config import checks, load
from ..config.access import Grant, digest_of
from . import exit_codes
from .render.answers import table


def run(arguments: argparse.Namespace) -> int:
    """Raises `ConfigurationError`."""
    return _list(arguments) if arguments.name == "list" else _make(arguments)


def _make(arguments: argparse.Namespace) -> int:
    """The token is told here, and nowhere else: what is kept is its digest."""
    token = secrets.token_urlsafe(32)
    line = " ".join((arguments.name, arguments.role, digest_of(token.encode()).hex(), *arguments.fields))
    if arguments.file is not None:
        checks.add_line(arguments.file.expanduser(), line)
    if arguments.json:
        print(json.dumps({"token": token, "line": line}))
    elif arguments.file is not None:
        print(token)
    else:
        print(token, line, sep="\n")
    return exit_codes.OK


def _list(arguments: argparse.Namespace) -> int:
    grants = checks.grants(load(file=arguments.config))
    if arguments.json:
        print(json.dumps([_plain(grant) for grant in grants]))
    elif grants:
        rows = [(each.name, each.role, " ".join(_limits(each)) or None) for each in grants]
        print(table(("NAME", "ROLE", "LIMITS"), rows))
    else:
        print("no tokens: every request is an operator's")
    return exit_codes.OK


def _plain(grant: Grant) -> dict[str, Any]:
    own = {"name": grant.name, "role": grant.role, "presets": grant.presets, "sae": grant.sae}
    return {**own, **dataclasses.asdict(grant.quota)}


def _limits(grant: Grant) -> Iterator[str]:
    if grant.presets is not None:
        yield f"presets={','.join(grant.presets)}"
    if grant.sae is not None:
        yield f"sae={grant.sae}"
    for which, most in dataclasses.asdict(grant.quota).items():
        if most is not None:
            yield f"{which}={most}"
