"""The hash chain: pure functions over the stored bytes, shared by every log.

    data_hash = sha256(salt ‖ data)
    hash      = sha256(TAG ‖ previous ‖ position ‖ schema ‖ lengths ‖ event_id ‖ type ‖ time ‖ command_id ‖ principal
                       ‖ data_hash)
    genesis   = sha256(GENESIS_TAG ‖ log_id)

`previous` is the hash of the event before, of event 1 the genesis. Every length is in a fixed-width header
before the texts, so no two events share a preimage; an absent `command_id` has length −1. The payload enters by its
salted digest alone: it can be erased later and the chain still verifies. Numbers are big-endian.
"""

from __future__ import annotations

import copy
import hashlib
import os
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from msgspec import DecodeError, Raw
from msgspec.json import Decoder

from ..domain.events import ERASED, Draft, Event, PayloadRedacted
from ..errors import TooLargeError
from ..ports import Head, Verification

TAG = b"sae-actor event 1\n"
GENESIS_TAG = b"sae-actor genesis 1\n"
SALT_BYTES = 16
MAX_EVENT_BYTES = 256 * 1024
"""Payload and texts of one event together."""
MAX_SKEWED = 100
"""Events out of time that a verification names."""

_LINE_FEED, _RETURN = b"\n\r"

_HEADER = struct.Struct(">32sQIIIIiI")
"""previous, position, schema, then the lengths of event_id, type, time, command_id (−1: none), principal."""

_REDACTION = PayloadRedacted.__name__.encode()
_redaction = Decoder(PayloadRedacted)


class Row(NamedTuple):
    """One event as the log stores it; the fields are the columns, in their order."""

    position: int
    event_id: str
    type: str
    schema: int
    time: str
    command_id: str | None
    principal: str
    data: bytes | None
    """None, like the salt, if the payload was erased."""
    salt: bytes | None
    data_hash: bytes
    hash: bytes


RawRow: TypeAlias = Sequence[Any]
"""A row as read, with untrusted types; text as UTF-8 bytes."""


def genesis(log_id: str) -> bytes:
    return hashlib.sha256(GENESIS_TAG + bytes.fromhex(log_id)).digest()


Texts: TypeAlias = tuple[bytes, bytes, bytes, bytes | None, bytes]
"""event_id, type, time, command_id, principal in UTF-8."""


class Sealed(NamedTuple):
    """A draft with everything of its hash but its place."""

    draft: Draft
    data: bytes
    salt: bytes
    data_hash: bytes
    texts: Texts
    size: int
    """Bytes of payload and texts."""


class Salts:
    """Fresh salts, read from the system many at a time. For one thread."""

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def take(self) -> bytes:
        at = self._at
        if at == len(self._pool):
            self._pool, at = os.urandom(256 * SALT_BYTES), 0
        self._at = at + SALT_BYTES
        return self._pool[at : self._at]


def seal(draft: Draft, salt: bytes) -> Sealed:
    """Digest the payload with its salt.

    Raises `TooLargeError` above `MAX_EVENT_BYTES`, `ValueError` for text that has no UTF-8 form (a lone surrogate),
    a schema outside [1, 2^31), or a payload of several lines, which neither the stream nor an export could carry.
    """
    if not 1 <= draft.schema < 2**31:
        raise ValueError(f"schema {draft.schema} of {draft.type}")
    data = bytes(draft.data)
    if _LINE_FEED in data or _RETURN in data:
        raise ValueError(f"the payload of a {draft.type} has more than one line")
    event_id, type_, time = draft.event_id.encode(), draft.type.encode(), draft.time.encode()
    command_id = None if draft.command_id is None else draft.command_id.encode()
    principal = draft.principal.encode()
    size = len(data) + len(event_id) + len(type_) + len(time) + len(command_id or b"") + len(principal)
    if size > MAX_EVENT_BYTES:
        raise TooLargeError(
            f"an event of {size} bytes; at most {MAX_EVENT_BYTES} go into the log", size=size, limit=MAX_EVENT_BYTES
        )
    data_hash = hashlib.sha256(salt + data).digest()
    return Sealed(draft, data, salt, data_hash, (event_id, type_, time, command_id, principal), size)


def link_all(batch: Iterable[Sealed], head: Head) -> list[Row]:
    """All events in their places after `head`."""
    rows: list[Row] = []
    position, previous = head.position, bytes.fromhex(head.hash)
    for draft, data, salt, data_hash, texts, _ in batch:
        position += 1
        schema, command_id, principal = draft.schema, draft.command_id, draft.principal
        previous = event_digest(previous, position, schema, texts, data_hash)
        columns = (position, draft.event_id, draft.type, schema, draft.time, command_id, principal, data, salt)
        # What the constructor of a named tuple does, without its call for each event.
        rows.append(tuple.__new__(Row, (*columns, data_hash, previous)))
    return rows


def event_digest(previous: bytes, position: int, schema: int, texts: Texts, data_hash: bytes) -> bytes:
    event_id, type_, time, command_id, principal = texts
    header = _HEADER.pack(
        previous,
        position,
        schema,
        len(event_id),
        len(type_),
        len(time),
        -1 if command_id is None else len(command_id),
        len(principal),
    )
    return hashlib.sha256(TAG + header + event_id + type_ + time + (command_id or b"") + principal + data_hash).digest()


def event_of(row: Sequence[Any]) -> Event:
    """The event in a row of the log (text as str); a payload that was erased reads as `null`."""
    position, event_id, type_, schema, time, command_id, principal, data, _, _, digest = row
    return Event(
        position=position,
        event_id=event_id,
        type=type_,
        schema=schema,
        time=time,
        command_id=command_id,
        principal=principal,
        data=Raw(ERASED if data is None else data),
        hash=digest.hex(),
    )


def as_read(row: Sequence[Any]) -> RawRow:
    """A row with text as str, in the form that `Walk` takes.

    Raises `AttributeError` if a column does not hold text; `Walk` treats that as damage.
    """
    position, event_id, type_, schema, time, command_id, principal, *rest = row
    command = None if command_id is None else command_id.encode()
    return (position, event_id.encode(), type_.encode(), schema, time.encode(), command, principal.encode(), *rest)


class Walk:
    """Verifies rows in order, from the first on; stops at the first that does not fit.

    `position` and `hash` are those of the last good event, `bad` says what is wrong with the next one.
    """

    def __init__(self, log_id: str) -> None:
        self.position = 0
        self.hash = genesis(log_id)
        self.bad: str | None = None
        self.kinds: dict[tuple[bytes, int], int] = {}
        """(type, schema) → position of the first event of that kind."""
        self.erased: set[int] = set()
        """Events whose payload is gone."""
        self.redacted: set[int] = set()
        """Events that a PayloadRedacted names."""
        self.time = b""
        """Of the last good event."""
        self.skewed: list[int] = []
        """The first `MAX_SKEWED` events with an earlier time than the one before them."""

    @property
    def head(self) -> Head:
        return Head(self.position, self.hash.hex())

    def feed(self, rows: Iterable[RawRow]) -> bool:
        """False from the first bad row on. Holds only the row at hand: `rows` may be a cursor."""
        if self.bad is None:
            try:
                self.bad = self._walk(rows)
            except (TypeError, ValueError, AttributeError, OverflowError, struct.error, DecodeError):
                # A column of another type than the schema says, or a header that does not fit its width.
                self.bad = "the row is malformed"
        return self.bad is None

    def _walk(self, rows: Iterable[Any]) -> str | None:
        # The loop that replays a million events: event_digest is written out in it, attributes are locals.
        sha256, pack, kinds = hashlib.sha256, _HEADER.pack, self.kinds
        position, previous, latest = self.position, self.hash, self.time
        try:
            for at, event_id, type_, schema, time, command_id, principal, data, salt, data_hash, stored in rows:
                if at != position + 1:
                    return f"position {at} follows {position}"
                if data is not None or salt is not None:
                    if sha256(salt + data).digest() != data_hash:
                        return "the payload does not match its digest"
                else:
                    self.erased.add(at)
                command, size = (b"", -1) if command_id is None else (command_id, len(command_id))
                header = pack(previous, at, schema, len(event_id), len(type_), len(time), size, len(principal))
                digest = sha256(TAG + header + event_id + type_ + time + command + principal + data_hash).digest()
                if digest != stored:
                    return "the hash does not match"
                if (type_, schema) not in kinds:
                    kinds[type_, schema] = at
                if type_ == _REDACTION and data is not None:
                    self.redacted.add(_redaction.decode(data).redacted_position)
                if time < latest and len(self.skewed) < MAX_SKEWED:
                    self.skewed.append(at)
                position, previous, latest = at, digest, time
        finally:
            self.position, self.hash, self.time = position, previous, latest
        return None

    def copy(self) -> Walk:
        """The same walk, to be continued apart from this one."""
        other = copy.copy(self)
        other.kinds, other.skewed = dict(self.kinds), [*self.skewed]
        other.erased, other.redacted = set(self.erased), set(self.redacted)
        return other

    def fault(self) -> tuple[int, str] | None:
        """The first bad position and what is wrong there, known at the end of the walk: also of a payload that is gone
        without a PayloadRedacted on record."""
        if self.bad is not None:
            return self.position + 1, self.bad
        bare = min(self.erased - self.redacted, default=None)
        return None if bare is None else (bare, "the payload is missing, and no PayloadRedacted names it")


def sound(walk: Walk, found: Iterable[tuple[Head, str | None]] = ()) -> Verification:
    """The result of a walk without a fault, from the first event on. `found`: witnessed heads, each with the hash at
    its position (None: the log ends before)."""
    for head, stored in sorted(found, key=lambda each: each[0].position):
        if (fault := unwitnessed(head, stored, walk.position)) is not None:
            return unsound(walk, fault[0], f"event {fault[0]}: {fault[1]}")
    skewed = tuple(walk.skewed)
    return Verification(ok=True, events=walk.position, head=walk.head, clock_skew=skewed, verified_from=1)


def unsound(walk: Walk, first_bad: int, detail: str) -> Verification:
    return Verification(ok=False, events=walk.position, head=walk.head, first_bad=first_bad, detail=detail)


def unwitnessed(head: Head, found: str | None, end: int) -> tuple[int, str] | None:
    """The first bad position of a log that has the hash `found` (None: it ends before) where a head was witnessed, and
    what is wrong; None if it is that event."""
    if found is None:
        return end + 1, f"missing; the log ends at {end}, and an event {head.position} was witnessed"
    return None if found == head.hash else (head.position, "it is not the event that was witnessed")
