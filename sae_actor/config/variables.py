"""Environment variables: which names are ours, and suggestions for those that are not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

PREFIX = "SAE_ACTOR_"
CONFIG_VARIABLE = "SAE_ACTOR_CONFIG"
CLIENT_VARIABLES = ("SAE_ACTOR_URL", "SAE_ACTOR_TOKEN")
_PLATFORM = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_\w+)?")
"""After the prefix: what a container platform sets for a service of our name."""


def strange_names(environment: Mapping[str, str]) -> list[str]:
    """Names with our prefix that neither the client nor a container platform knows, in order."""
    return [
        name
        for name, value in sorted(environment.items())
        if name.startswith(PREFIX)
        and name not in (CONFIG_VARIABLE, *CLIENT_VARIABLES)
        and not _of_a_platform(name.removeprefix(PREFIX), value)
    ]


def _of_a_platform(name: str, value: str) -> bool:
    """`SAE_ACTOR_PORT` is one of theirs where it is an address, `tcp://…`."""
    return _PLATFORM.fullmatch(name) is not None or (name == "PORT" and "://" in value)


def meant(variable: str, keys: Collection[str]) -> str:
    """The most similar variable of these keys (`section.name`), as the end of a sentence."""
    name = variable.removeprefix(PREFIX)
    known = [key.upper().replace(".", "_") for key in keys]
    alike = [each for each in known if each.endswith(f"_{name}")] or difflib.get_close_matches(name, known, 1)
    return f"; did you mean {PREFIX}{alike[0]}?" if alike else ""
