"""Erasing a payload: it is gone from every file, the chain is whole, and the erasure is on record."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sae_actor.domain.events import (
    CommandRejected,
    GenerationFinished,
    GenerationStarted,
    PayloadRedacted,
    Problem,
    Sampling,
    draft,
)
from sae_actor.domain.evolve import fold
from sae_actor.errors import BadRequestError, LogDamagedError, LogError, LogHeldError, NotFoundError
from sae_actor.eventlog import SqliteLog, events_of, redact, verify_folder
from tests.eventlog.making import TIME, a_draft, content, copy_while_open, make_log, shown

pytestmark = pytest.mark.anyio

SECRET = "my name is Roswitha" * 500


async def make(folder: Path) -> None:
    """1 ActorStopped, 2 CommandRejected with the secret, 3 and 4 a text, 5 ActorStopped."""
    log = await SqliteLog.open(folder)
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=5, seed=1)
    for payload in (
        CommandRejected(command="Attach", error=Problem(code="sae_not_found", detail=SECRET)),
        GenerationStarted(
            generation_id="g", kind="chat", intervention=(), intervention_sha256="", sampling=sampling, tokens_prompt=3,
            tag=SECRET,
        ),
        GenerationFinished(generation_id="g", started_position=3, finish_reason="stop", intervention_sha256=""),
    ):  # fmt: skip
        if log.head.position == 0:
            await log.append([a_draft()], expected=0)
        await log.append([draft(payload, time=TIME, command_id=None, principal="p")], expected=log.head.position)
    await log.append([a_draft()], expected=log.head.position)
    await log.close()


async def redact_all(folder: Path, *positions: int) -> None:
    for position in positions:
        await redact(folder, position, "asked to", time=TIME)


def somewhere(folder: Path, text: str) -> bool:
    return any(text.encode() in path.read_bytes() for path in folder.iterdir())


async def test_a_redacted_payload_is_in_no_file_and_the_chain_is_whole(tmp_path: Path) -> None:
    await make(tmp_path)
    before = [event async for event in events_of(tmp_path)]
    for position in (2, 3):
        assert somewhere(tmp_path, SECRET[:40])
        event = await redact(tmp_path, position, "asked to", time=TIME, principal="auditor")
        assert event.payload() == PayloadRedacted(redacted_position=position, why="asked to")
    assert not somewhere(tmp_path, SECRET[:40])
    verification = await verify_folder(tmp_path)
    assert (verification.ok, verification.events) == (True, 7)
    after = [event async for event in events_of(tmp_path)]
    assert [event.hash for event in after[:5]] == [event.hash for event in before]
    assert [bytes(event.data) for event in after[1:3]] == [b"null", b"null"]
    assert after[1].payload() is None
    assert shown(after[3:5]) == shown(before[3:])
    log = await SqliteLog.open(tmp_path)
    assert (await log.verify()).ok
    await log.append([a_draft()], expected=7)
    await log.close()


async def test_the_state_is_the_same_after_a_redaction(tmp_path: Path) -> None:
    await make(tmp_path)
    with pytest.raises(BadRequestError, match="redact event 3 first"):
        await redact(tmp_path, 4, "x", time=TIME)
    before = fold([event async for event in events_of(tmp_path)])
    for position in (3, 4, 2):
        await redact(tmp_path, position, "x", time=TIME)
    after = fold([event async for event in events_of(tmp_path)][:5])
    assert after == before
    assert after.generations == {}


@pytest.mark.parametrize(
    ("position", "error"), [(0, NotFoundError), (-1, NotFoundError), (6, NotFoundError), (1, BadRequestError)]
)
async def test_what_cannot_be_redacted_is_refused_and_nothing_changes(
    tmp_path: Path, position: int, error: type[Exception]
) -> None:
    await make(tmp_path)
    with pytest.raises(error):
        await redact(tmp_path, position, "x", time=TIME)
    assert (await verify_folder(tmp_path)).events == 5


async def test_a_payload_is_redacted_once_and_the_record_of_it_never(tmp_path: Path) -> None:
    await make(tmp_path)
    await redact(tmp_path, 2, "x", time=TIME)
    with pytest.raises(BadRequestError, match="already erased"):
        await redact(tmp_path, 2, "x", time=TIME)
    with pytest.raises(BadRequestError, match="PayloadRedacted"):
        await redact(tmp_path, 6, "x", time=TIME)


async def test_a_log_in_use_is_not_redacted(tmp_path: Path) -> None:
    await make(tmp_path)
    log = await SqliteLog.open(tmp_path)
    with pytest.raises(LogHeldError):
        await redact(tmp_path, 2, "x", time=TIME)
    await log.close()


async def test_a_redaction_cut_off_by_a_kill_is_finished_by_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    await make(folder)
    log = await SqliteLog.open(folder)
    payload = PayloadRedacted(redacted_position=2, why="x")
    await log.append([draft(payload, time=TIME, command_id=None, principal="p")], expected=5)
    copy_while_open(folder, tmp_path / "killed")
    await log.close()
    assert (await verify_folder(tmp_path / "killed")).ok
    log = await SqliteLog.open(tmp_path / "killed")
    assert bytes((await log.read(1, 1))[0].data) == b"null"
    assert (await log.verify()).ok
    await log.close()
    assert somewhere(tmp_path / "killed", SECRET[:40])  # the other text with it
    assert (await verify_folder(tmp_path / "killed")).events == 6


async def test_only_the_payload_that_was_just_named_can_be_erased(tmp_path: Path) -> None:
    await make(tmp_path)
    log = await SqliteLog.open(tmp_path)
    with pytest.raises(LogError, match="events are final"):
        await log.erase(2)
    await log.close()
    await redact(tmp_path, 2, "x", time=TIME)
    log = await SqliteLog.open(tmp_path)
    with pytest.raises(LogError, match="events are final"):
        await log.erase(3)
    await log.close()


async def test_an_erasure_without_a_record_is_damage(tmp_path: Path) -> None:
    await make_log(tmp_path, 5)
    with sqlite3.connect(tmp_path / "events.db") as db:
        (trigger,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = 'events_are_final'").fetchone()
        db.execute("DROP TRIGGER events_are_final")
        db.execute("UPDATE events SET data = NULL, salt = NULL WHERE position = 3")
        db.execute(trigger)
    db.close()
    before = content(tmp_path)
    with pytest.raises(LogDamagedError, match="no PayloadRedacted names it"):
        await SqliteLog.open(tmp_path)
    assert content(tmp_path) == before
