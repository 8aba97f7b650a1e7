"""What the index has of an event."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec

from ...domain.events import Event, GenerationFinished, GenerationStarted, payload_of
from ...domain.events.mentions import sae_ids
from ...domain.views.provenance import APART, SET_ANEW


class Began(NamedTuple):
    """The beginning of a generation."""

    key: int | None
    """None if it cannot be read: then only its end says which one it was."""
    tag: str | None


class Ended(NamedTuple):
    key: int
    started_position: int


class Entry(NamedTuple):
    position: int
    type: str
    time: str
    principal: str
    sae_ids: frozenset[str]
    turns: bool
    """Explanations of later answers may rest on it; of steering only the last one counts, which is found by its SAE."""
    began: Began | None = None
    ended: Ended | None = None


def entry_of(event: Event) -> Entry:
    began = ended = None
    if event.type in (GenerationStarted.type, GenerationFinished.type):
        match payload_of(event):
            case GenerationStarted() as started:
                began = Began(key_of(started.generation_id), started.tag)
            case GenerationFinished() as finished:
                ended = Ended(key_of(finished.generation_id), finished.started_position)
            case _ if event.type == GenerationStarted.type:
                began = Began(None, None)
    turns = event.type not in APART and event.type != SET_ANEW
    return Entry(event.position, event.type, event.time, event.principal, _named(event), turns, began, ended)


def key_of(generation_id: str) -> int:
    """48 bits, which two generations may share: the events tell them apart."""
    return int.from_bytes(hashlib.blake2b(generation_id.encode(), digest_size=6).digest())


def _named(event: Event) -> frozenset[str]:
    try:
        return sae_ids(bytes(event.data))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return frozenset()
