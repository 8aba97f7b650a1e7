"""The spec of a contrast."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from ...domain.measuring.specs import ContrastSpec
from ...domain.rules.admission import read_sae
from ...errors import BadRequestError
from ...runs.lists import Item
from ..answers import state_of
from ..types import AnyRequest
from .sources import AskedRun, as_asked, chats_source

POSITIVE = (True, 1, "positive")
NEGATIVE = (False, 0, "negative")


def asked_contrast(request: AnyRequest, given: dict[str, Any]) -> AskedRun:
    """Raises `BadRequestError`, and what the rules refuse its SAE with."""
    spec = dict(given)
    named = {name: spec.pop(name) for name in ("positive", "negative", "texts") if name in spec}
    if set(named) not in ({"positive", "negative"}, {"texts"}):
        raise BadRequestError("spec: give positive and negative, or texts with labels", param="spec")
    sources = {name: chats_source(value, f"spec.{name}") for name, value in named.items()}
    checked = as_asked(spec, ContrastSpec, "spec")
    if checked.label is not None and "texts" not in named:
        raise BadRequestError("label is one of texts: give texts, with labels", param="spec.label")
    sae = read_sae(state_of(request), checked.sae_id, (), "contrast")
    checked = replace(checked, sae_id=sae.sae_id)
    lists: dict[str, Iterator[Item]] = {}
    origins = {}
    for name in ("positive", "negative"):
        source = sources["texts" if "texts" in sources else name]
        lists[name], origins[name] = source.items(request), source.origin
        if "texts" in sources:
            lists[name] = _labelled(lists[name], checked.label, positive=name == "positive")
    return AskedRun(
        spec=msgspec.to_builtins(checked),
        lists=lists,
        origins=origins,
        read=(sae.sae_id,),
    )


def _labelled(items: Iterable[Item], label: Any, *, positive: bool) -> Iterator[Item]:
    """The texts of one side. `BadRequestError` for a text whose label tells no side."""
    for number, item in enumerate(items):
        if item.label is None:
            raise BadRequestError(f"texts[{number}] has no label", param="spec.texts")
        if label is not None:
            side = item.label == label
        elif item.label in POSITIVE or item.label in NEGATIVE:
            side = item.label in POSITIVE
        else:
            told = f"texts[{number}] has the label {str(item.label)[:80]!r}: say which label is the positive one"
            raise BadRequestError(told, param="spec.label")
        if side is positive:
            yield Item(text=item.text, messages=item.messages)
