"""`/api/log/verify` and `/api/log/diff`: whether the log is the one that was written, and what changed in between."""

from __future__ import annotations

import re
from typing import Any

from msgspec import Struct, field

from ....domain.refs import Edit
from ....domain.views.difference import difference
from ....domain.views.fields import Position
from ....errors import BadRequestError
from ....ports import Head, Verification
from ...answers import answer, state_of
from ...context import context
from ...disconnects import heard
from ...operations import Query, operation
from ...types import Answer, AnyRequest
from .moments import MOMENT, position_of, state_at

MAX_HEADS = 16
_ONE = "[1-9][0-9]{0,15}:[0-9a-fA-F]{64}"
_HEAD = re.compile(r"([1-9][0-9]{0,15}):([0-9a-fA-F]{64})")

FULL = Query("full", {"type": "boolean"},
             "true (the default): walk every event; false: only those since the last walk of this process")  # fmt: skip
HEADS = Query("head", {"type": "string", "pattern": f"^{_ONE}(,{_ONE}){{0,{MAX_HEADS - 1}}}$"},
              "POSITION:HASH of a head noted elsewhere that the log must contain; several with commas")  # fmt: skip


class Changed(Struct, frozen=True, kw_only=True):
    """A field that differs; on a side that is missing every field counts as null."""

    before: Any
    after: Any


class ChangedEdits(Struct, frozen=True, kw_only=True):
    """Edits that differ, in the order of the later set; an edit's key is (feature, method, positions)."""

    added: tuple[Edit, ...]
    removed: tuple[Edit, ...]
    changed: tuple[Changed, ...]
    reordered: bool


class ChangedEntry(Struct, frozen=True, kw_only=True):
    """An SAE, or the attachment of one, that is there before and after."""

    sae_id: str
    changes: dict[str, Changed]
    steering: ChangedEdits | None = None
    """Of an attachment."""


class ChangedEntries(Struct, frozen=True, kw_only=True):
    added: tuple[dict[str, Any], ...]
    removed: tuple[dict[str, Any], ...]
    changed: tuple[ChangedEntry, ...]


class ChangedPreset(Struct, frozen=True, kw_only=True):
    name: str
    changes: dict[str, Changed]


class ChangedPresets(Struct, frozen=True, kw_only=True):
    added: tuple[dict[str, Any], ...]
    removed: tuple[dict[str, Any], ...]
    changed: tuple[ChangedPreset, ...]


class StateDifference(Struct, frozen=True, kw_only=True):
    """What differs between two states, as `log diff` tells it."""

    from_: Position = field(name="from")
    to: Position
    model: dict[str, Changed]
    saes: ChangedEntries
    attachments: ChangedEntries
    presets: ChangedPresets


@operation("GET", "/api/log/verify", "Walk the hash chain", query=(FULL, HEADS), returns=Verification, tag="log")
async def verify_log(request: AnyRequest) -> Answer:
    full, heads = _flag(request, "full", default=True), _heads(request)
    async with heard(request), context(request).walks.taken():
        return answer(request, await context(request).log.verify(full=full, heads=heads))


@operation("GET", "/api/log/diff", "What changed between two positions or times",
           query=(Query("from", MOMENT, "position, or time", required=True),
                  Query("to", MOMENT, "position, or time (default: the head)")),
           returns=StateDifference, errors=("not_found",), tag="log")  # fmt: skip
async def get_difference(request: AnyRequest) -> Answer:
    if request.query_params.get("from") is None:
        raise BadRequestError("say from which position or time: from", param="from")
    head = state_of(request).position
    async with heard(request), context(request).walks.taken():
        one, other = [await position_of(request, name, head) for name in ("from", "to")]
        before, after = [await state_at(request, at) for at in (one, other)]
    return answer(request, difference(before, after))


def _flag(request: AnyRequest, name: str, *, default: bool) -> bool:
    given = request.query_params.get(name)
    if given not in (None, "true", "false"):
        raise BadRequestError(f"{name} must be true or false", param=name)
    return default if given is None else given == "true"


def _heads(request: AnyRequest) -> list[Head]:
    given = request.query_params.get("head")
    if given is None:
        return []
    found = [_HEAD.fullmatch(each) for each in given.split(",")]
    if len(found) > MAX_HEADS or None in found:
        raise BadRequestError(f"head must be POSITION:HASH, at most {MAX_HEADS} of them with commas", param="head")
    return [Head(int(each[1]), each[2].lower()) for each in found if each is not None]
