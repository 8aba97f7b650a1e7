"""The chain, recomputed by hand, and everything it must notice."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
from pathlib import Path
from typing import Any

import pytest

from sae_actor.domain.events import Draft
from sae_actor.eventlog.chain import Row, Walk, as_read, event_digest, genesis, link_all, seal
from sae_actor.ports import Head
from tests.eventlog.making import TIME, make_log, some_drafts

LOG_ID = "0123456789abcdef" * 2


def made(drafts: list[Draft]) -> list[Row]:
    return link_all([seal(each, os.urandom(16)) for each in drafts], Head(0, genesis(LOG_ID).hex()))


def walk(rows: list[Row]) -> Walk:
    walk = Walk(LOG_ID)
    walk.feed(map(as_read, rows))
    return walk


def test_the_formula_is_the_one_of_every_log_ever_written() -> None:
    assert genesis(LOG_ID).hex() == "38b155e8b543980d786547fa10ee467fce7603d4c010b9d4c125bbdb5b212fd2"
    texts = (b"e-1", b"ActorStopped", TIME.encode(), b"c-1", b"local")
    assert (
        event_digest(genesis(LOG_ID), 1, 1, texts, b"\x01" * 32).hex()
        == "f4df372bd415ced04935cbbb914e292d2e4e119e479ba82319e64b7c1fadd564"
    )
    without = (b"e-1", b"ActorStopped", TIME.encode(), None, b"local")
    assert (
        event_digest(genesis(LOG_ID), 1, 1, without, b"\x01" * 32).hex()
        == "bf3c1e532e3d8462e98f2486b7b5b0bcdbf0a6053074c89f7a483c9c090ddaab"
    )


@pytest.mark.anyio
async def test_the_stored_chain_is_the_documented_one(tmp_path: Path) -> None:
    await make_log(tmp_path, 7)
    with sqlite3.connect(tmp_path / "events.db") as db:
        (log_id,) = db.execute("SELECT log_id FROM meta").fetchone()
        rows = db.execute("SELECT * FROM events ORDER BY position").fetchall()
    db.close()
    previous = hashlib.sha256(b"sae-actor genesis 1\n" + bytes.fromhex(log_id)).digest()
    for position, event_id, type_, schema, time, command_id, principal, data, salt, data_hash, digest in rows:
        assert len(salt) == 16
        assert hashlib.sha256(salt + data).digest() == data_hash
        texts = [text.encode() for text in (event_id, type_, time, command_id, principal)]
        lengths = struct.pack(">IIIiI", *map(len, texts))
        preimage = b"sae-actor event 1\n" + previous + struct.pack(">QI", position, schema) + lengths
        previous = hashlib.sha256(preimage + b"".join(texts) + data_hash).digest()
        assert previous == digest
    assert len({row[8] for row in rows}) == 7


CHANGES: dict[str, Any] = {
    "event_id": "another",
    "type": "ActorStarted",
    "schema": 2,
    "time": "2026-01-31T12:00:00.000001Z",
    "command_id": None,
    "principal": "root",
    "data": b'{"reason":"R4"}',
    "salt": b"\0" * 16,
    "data_hash": b"\0" * 32,
    "hash": b"\0" * 32,
    "position": 6,
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_is_found_at_its_event(field: str) -> None:
    rows = made(some_drafts(9))
    rows[4] = rows[4]._replace(**{field: CHANGES[field]})
    assert walk(rows).position == 4
    assert walk(rows).bad


@pytest.mark.parametrize("field", [name for name in Row._fields if name not in ("command_id", "data", "salt")])
@pytest.mark.parametrize("value", [None, 1.5, b"", "", 2**70, -1])
def test_a_field_of_another_type_is_found_too(field: str, value: Any) -> None:
    rows = made(some_drafts(9))
    rows[4] = rows[4]._replace(**{field: value})
    assert walk(rows).position == 4


def test_moving_text_from_one_field_to_the_next_is_found() -> None:
    rows = made(some_drafts(3))
    row = rows[1]
    rows[1] = row._replace(event_id=row.event_id + row.type[0], type=row.type[1:])
    assert walk(rows).position == 1
    rows[1] = row._replace(command_id=None, time=row.time + (row.command_id or ""))
    assert walk(rows).position == 1


def test_an_absent_command_is_not_an_empty_one() -> None:
    draft = some_drafts(1)[0]
    rows = made([Draft(**{**{name: getattr(draft, name) for name in draft.__struct_fields__}, "command_id": ""})])
    assert walk(rows).bad is None
    assert walk([rows[0]._replace(command_id=None)]).bad


def test_left_out_swapped_repeated_and_foreign_events_are_found() -> None:
    rows = made(some_drafts(9))
    assert walk(rows[1:]).position == 0
    assert walk(rows[:4] + rows[5:]).position == 4
    assert walk([*rows[:4], rows[5], rows[4], *rows[6:]]).position == 4
    assert walk([*rows[:4], rows[3], *rows[4:]]).position == 4
    renumbered = [rows[5]._replace(position=5), rows[4]._replace(position=6)]
    assert walk([*rows[:4], *renumbered, *rows[6:]]).position == 4
    other = link_all([seal(each, os.urandom(16)) for each in some_drafts(9)], Head(0, genesis("f" * 32).hex()))
    assert walk([*rows[:4], *other[4:]]).position == 4
    assert walk(other).position == 0


def test_an_erased_payload_needs_a_redaction_on_record() -> None:
    rows = made(some_drafts(4))
    rows[2] = rows[2]._replace(data=None, salt=None)
    assert walk(rows).bad is None
    assert walk(rows).fault() == (3, "the payload is missing, and no PayloadRedacted names it")
    rows[2] = rows[2]._replace(salt=b"x")
    assert walk(rows).position == 2
