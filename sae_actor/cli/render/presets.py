"""Presets for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .answers import edit, plain

Answer = dict[str, Any]


def presets(answer: Answer) -> str:
    lines = [line for each in answer["presets"] for line in _lines(each)]
    return plain("\n".join(lines)) if lines else "no presets"


def _lines(preset: Answer) -> Iterator[str]:
    why = [f"not attached: {each}" for each in preset["missing"]]
    why += [f"other weights: {each}" for each in preset["incompatible"]]
    about = f", {preset['description']}" if preset["description"] else ""
    yield f"{preset['name']}{about}   [position {preset['position']}] {'; '.join(why) or 'usable'}"
    for sae in preset["interventions"]:
        yield f"  {sae['sae_id']}, {sae['mode']}: {'; '.join(edit(each) for each in sae['steering']) or 'no edits'}"


def saved(answer: Answer) -> str:
    name = answer["events"][0]["data"]["name"]
    return plain(f"{name} saved; use it as model default@{name}   [position {answer['position']}]")


def deleted(answer: Answer) -> str:
    return plain(f"{answer['events'][0]['data']['name']} deleted   [position {answer['position']}]")
