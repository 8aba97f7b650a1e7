"""Which SAEs an event names, of any type and version."""

from __future__ import annotations

from typing import Any

import msgspec


def names_sae(data: bytes, sae_id: str) -> bool:
    """Whether an event, as JSON, names this SAE."""
    return msgspec.json.encode(sae_id) in data and sae_id in sae_ids(data)


def sae_ids(data: bytes) -> frozenset[str]:
    """The SAEs that an event is about: its own `sae_id`, those inside it, and those that it replaces."""
    if b'"sae_id"' not in data and b'"replaces"' not in data:
        return frozenset()
    found: set[str] = set()
    waiting: list[Any] = [msgspec.json.decode(data)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            replaced = value.get("replaces")
            named = [value.get("sae_id"), *(replaced if isinstance(replaced, list) else ())]
            found.update(each for each in named if isinstance(each, str))
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return frozenset(found)
