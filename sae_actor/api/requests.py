"""Request bodies and headers, decoded strictly: one JSON object of the expected type, or an error with the reason."""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import msgspec

from ..errors import BadRequestError, PreconditionFailedError, UnsupportedMediaTypeError
from .types import AnyRequest

T = TypeVar("T")

_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_WAIT = re.compile(r"(?<![^,;\s])wait\s*=\s*\"?(\d{1,9})\"?(?![^,;\s])", re.IGNORECASE)
_ETAG = re.compile(r'"(\d{1,18})"')
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")
_WHERE = re.compile(r" - at `(?:key` in `)?\$\.?([^`]*)`")
MAX_POSITION = 2**53
"""The highest position: JSON numbers above it lose precision."""
MAX_WAIT = 300
HEAVY = 5000
"""A body with more commas and colons than this is decoded in a thread: it takes milliseconds."""
_BESIDE = ThreadPoolExecutor(1, "bodies")
"""One thread, so that bodies are decoded one at a time."""
_BESIDE.submit(bool)  # begins the thread now: later there may be no room for one
_MARK = re.compile(r'"(?:[^"\\]++|\\.)*+"\s*+:?|[\[{}\]]', re.DOTALL)
"""The JSON tokens that show objects and keys: strings, with a colon after keys, and brackets."""


def _refuse_twins(text: str) -> None:
    """Raises `ValueError` for JSON with a duplicate key in an object: two readers could read it differently.

    The text must be valid. Unlike the decoder of the standard library this lets other threads go on meanwhile.
    """
    opened: list[set[str] | None] = []
    keys: set[str] | None = None
    for found in _MARK.finditer(text):
        mark = found.group()
        if mark[-1] == ":":
            key = mark[:-1].rstrip()
            if "\\" in key:
                key = f'"{json.loads(key)}"'
            if keys is None or key in keys:
                raise ValueError("a key occurs more than once in one object")
            keys.add(key)
        elif mark in "{[":
            opened.append(keys)
            keys = set() if mark == "{" else None
        elif mark in "}]":
            keys = opened.pop()


async def body_of(request: AnyRequest, type_: type[T] | Any) -> T:
    """The body as `type_`. Raises `UnsupportedMediaTypeError`, `BadRequestError`; the framework answers 413."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaTypeError(f"send application/json, not {kind[:80] or 'nothing'}")
    raw = await request.body()
    if raw.count(b",") + raw.count(b":") < HEAVY:
        return cast("T", decoded(raw, type_))
    value: T = await asyncio.get_running_loop().run_in_executor(_BESIDE, functools.partial(decoded, raw, type_))
    return value


@functools.cache
def _decoder(type_: Hashable) -> msgspec.json.Decoder[Any]:
    """Made once for each type: to look through that of all commands takes longer than to decode one."""
    return msgspec.json.Decoder(type_)


def decoded(raw: bytes, type_: type[T] | Any) -> T:
    """Strict JSON as `type_`: no coercion, no unknown field, no key twice, no NaN, bounded depth. A type with `settle`
    looks through the decoded object first, and takes out of it what it answers for itself."""
    settle = getattr(type_, "settle", None)
    try:
        value: T
        if settle is None:
            value = _decoder(cast("Hashable", type_)).decode(raw)
            _refuse_twins(raw.decode())
        else:
            plain = _decoder(cast("Hashable", Any)).decode(raw)
            _refuse_twins(raw.decode())
            settle(plain)
            value = msgspec.convert(plain, type_)
    except msgspec.ValidationError as error:
        raise BadRequestError(str(error)[:500], param=_param(str(error))) from None
    except (ValueError, RecursionError) as error:
        # Malformed JSON, invalid UTF-8, twin keys, or nesting that no decoder follows.
        raise BadRequestError(f"not valid JSON: {str(error)[:200] or 'too deep'}") from None
    return value


def _param(message: str) -> str | None:
    """The field that a validation error speaks of."""
    unknown = _UNKNOWN.search(message)
    if unknown is not None:
        return unknown.group(1)[:80]
    where = _WHERE.search(message)
    return (where.group(1)[:80] or None) if where is not None else None


def _one(request: AnyRequest, name: str) -> str | None:
    """The value of a header; of two neither is taken."""
    given = request.headers.getall(name, [])
    if len(given) > 1:
        raise BadRequestError(f"the header {name} was sent more than once", param=name)
    return given[0] if given else None


def idempotency_key(request: AnyRequest) -> str | None:
    key = _one(request, "Idempotency-Key")
    if key is not None and not _KEY.fullmatch(key):
        raise BadRequestError("Idempotency-Key must be 1 to 128 visible ASCII characters", param="Idempotency-Key")
    return key


def expected_revision(request: AnyRequest) -> int | None:
    """The position that If-Match names."""
    raw = _one(request, "If-Match")
    if raw is None or raw.strip() == "*":
        return None
    match = _ETAG.fullmatch(raw.strip())
    if match is None or int(match.group(1)) > MAX_POSITION:
        if re.fullmatch(r'"-?\d+"', raw.strip()):
            raise BadRequestError(f"If-Match must name a position from 0 to {MAX_POSITION}", param="If-Match")
        if re.fullmatch(r'(W/)?"[^"]*"', raw.strip()):
            raise PreconditionFailedError("If-Match does not name a state of this service")
        raise BadRequestError('If-Match must be one ETag: "<position>"', param="If-Match")
    return int(match.group(1))


def wait_seconds(request: AnyRequest) -> int | None:
    """Seconds from `Prefer: wait=N`, clamped to 300. Invalid values are ignored; two waits are an error."""
    wishes = _WAIT.findall(", ".join(request.headers.getall("prefer", [])))
    if len(wishes) > 1:
        raise BadRequestError("Prefer has more than one wait; send one", param="Prefer")
    return min(int(wishes[0]), MAX_WAIT) if wishes else None


def whole_number(request: AnyRequest, name: str, *, default: int, low: int, high: int) -> int:
    """A query parameter that is a plain decimal integer within bounds."""
    raw = request.query_params.get(name)
    if raw is None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,18}", raw) or not low <= int(raw) <= high:
        raise BadRequestError(f"{name} must be a whole number from {low} to {high}", param=name)
    return int(raw)


MAX_PROMPTS = 64
"""In one request."""
