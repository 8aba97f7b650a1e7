"""Request bodies and headers, decoded strictly: one JSON object of the expected type, or an error that says why not."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Hashable
from typing import Any, TypeVar, cast

import msgspec
from litestar import Request

from ..errors import BadRequestError, PreconditionFailedError, UnsupportedMediaTypeError

T = TypeVar("T")

_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?(?:$|[,;\s])", re.IGNORECASE)
_ETAG = re.compile(r'"(\d{1,18})"')
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")
_WHERE = re.compile(r" - at `\$\.?([^`]*)`")
MAX_POSITION = 2**53
"""Of an event: a number beyond is none in JSON."""
MAX_WAIT = 300


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different: what two readers could take for two things is refused."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


_TWINS = json.JSONDecoder(object_pairs_hook=_no_twins, parse_int=lambda _: 0, parse_float=lambda _: 0.0)


async def body_of(request: Request[Any, Any, Any], type_: type[T] | Any) -> T:
    """The body as `type_`. Raises `UnsupportedMediaTypeError`, `BadRequestError`; the framework answers 413."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaTypeError(f"send application/json, not {kind[:80] or 'nothing'}")
    value: T = decoded(await request.body(), type_)
    return value


@functools.cache
def _decoder(type_: Hashable) -> msgspec.json.Decoder[Any]:
    """Made once for each type: to look through that of all commands takes longer than to decode one."""
    return msgspec.json.Decoder(type_)


def decoded(raw: bytes, type_: type[T] | Any) -> T:
    """Strict JSON as `type_`: no coercion, no unknown field, no key twice, no NaN, bounded depth."""
    try:
        value: T = _decoder(cast("Hashable", type_)).decode(raw)
        _TWINS.decode(raw.decode())
    except msgspec.ValidationError as error:
        raise BadRequestError(_says(error), param=_param(str(error))) from None
    except (ValueError, RecursionError) as error:
        # Malformed JSON, invalid UTF-8, twin keys, or nesting that no decoder follows.
        raise BadRequestError(f"not valid JSON: {str(error)[:200] or 'too deep'}") from None
    return value


def _says(error: msgspec.ValidationError) -> str:
    return str(error)[:500]


def _param(message: str) -> str | None:
    """The field that a validation error speaks of."""
    unknown = _UNKNOWN.search(message)
    if unknown is not None:
        return unknown.group(1)[:80]
    where = _WHERE.search(message)
    return (where.group(1)[:80] or None) if where is not None else None


def idempotency_key(request: Request[Any, Any, Any]) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise BadRequestError("Idempotency-Key takes 1 to 128 visible ASCII characters", param="Idempotency-Key")
    return key


def expected_revision(request: Request[Any, Any, Any]) -> int | None:
    """The position that If-Match names."""
    raw = request.headers.get("if-match")
    if raw is None or raw.strip() == "*":
        return None
    match = _ETAG.fullmatch(raw.strip())
    if match is None or int(match.group(1)) > MAX_POSITION:
        if re.fullmatch(r'"-?\d+"', raw.strip()):
            raise BadRequestError(f"If-Match names a position in [0, {MAX_POSITION}]", param="If-Match")
        if re.fullmatch(r'(W/)?"[^"]*"', raw.strip()):
            raise PreconditionFailedError("If-Match names no state of this service")
        raise BadRequestError('If-Match takes one ETag: "<position>"', param="If-Match")
    return int(match.group(1))


def wait_seconds(request: Request[Any, Any, Any]) -> int | None:
    """Seconds from `Prefer: wait=N`, clamped to 300; garbage is no wish."""
    match = _WAIT.search(request.headers.get("prefer", ""))
    return min(int(match.group(1)), MAX_WAIT) if match is not None else None


def whole_number(request: Request[Any, Any, Any], name: str, *, default: int, low: int, high: int) -> int:
    """A query parameter that is a plain decimal integer within bounds."""
    raw = request.query_params.get(name)
    if raw is None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,18}", raw) or not low <= int(raw) <= high:
        raise BadRequestError(f"{name} takes a whole number from {low} to {high}", param=name)
    return int(raw)
