"""The index of a real data folder: of an older log, in the offline verbs, after a redaction."""

# ruff: noqa: ASYNC240 - files of a test are small

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_actor.domain.events import LogForked, draft
from sae_actor.eventlog import SqliteLog, redact, verify_folder
from sae_actor.eventlog.audit.offline import finder_in
from sae_actor.eventlog.index import INDEX, Finder, IndexDatabase, catch_up
from sae_actor.eventlog.index.entries import entry_of
from sae_actor.eventlog.index.tables import BLOCK, TABLES, VERSION
from tests.cli.conftest import Ran, command
from tests.cli.logs import a_life, admitted, ended, write
from tests.eventlog.making import content
from tests.eventlog.test_golden_logs import GOLDEN, VERSIONS, log_of

from .lives import looked_up, plainly

__all__ = ["command"]

pytestmark = pytest.mark.anyio

CANARY = "canary of a tag"
TIME = "2026-01-31T12:00:00.000000Z"
PINNED = (1, "a9bc9dfa6d6b8da8")


async def indexed(folder: Path) -> None:
    log = await SqliteLog.open(folder)
    index = IndexDatabase(folder / INDEX)
    await catch_up(log, index)
    assert index.head == log.head
    index.close()
    await log.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    told = ended(admitted(a_life(), "gen-3", tag=CANARY), "gen-3")
    write(tmp_path / "log", ended(admitted(told, "gen-4", tag="first"), "gen-4"))
    return tmp_path / "log"


def test_the_version_is_raised_with_what_is_entered() -> None:
    """If this fails, raise `VERSION` and pin the new pair: an index of before would be taken for one of now."""
    events = ended(admitted(a_life(), "gen-3", tag="t"), "gen-3").events
    entries = [entry._replace(sae_ids=sorted(entry.sae_ids)) for entry in map(entry_of, events)]  # type: ignore[arg-type]
    told = repr([sorted(TABLES.items()), BLOCK, entries])
    assert (VERSION, hashlib.sha256(told.encode()).hexdigest()[:16]) == PINNED


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_log_of_an_older_version(version: str, tmp_path: Path) -> None:
    log = await SqliteLog.open(log_of(GOLDEN / version, tmp_path / "log"))
    index = IndexDatabase(tmp_path / "log" / INDEX)
    await catch_up(log, index)
    finder = Finder(log, index)
    assert finder.upto == log.head.position > 20
    assert await looked_up(finder) == await plainly(log)
    index.close()
    await log.close()


async def test_offline_it_is_used_where_it_fits_and_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    await indexed(folder)
    log = await SqliteLog.open(folder)
    expected = await plainly(log)
    await log.close()
    verification = await verify_folder(folder)
    before = content(folder)
    head = verification.head.position
    async with finder_in(folder, verification.head, sound=True) as finder:
        assert finder.upto == head
        assert await looked_up(finder) == expected
    assert content(folder) == before
    shutil.copytree(folder, tmp_path / "without")
    (tmp_path / "without" / INDEX).unlink()
    for where, sound in ((tmp_path / "without", True), (folder, False)):
        async with finder_in(where, verification.head, sound=sound) as finder:
            assert finder.upto == 0
            assert await looked_up(finder) == expected
    # A service without an index wrote more.
    log = await SqliteLog.open(folder)
    fork = LogForked(reason="copied", branch_id="b" * 32, parent_id="a" * 32, parent_head=None)  # type: ignore[arg-type]
    await log.append([draft(fork, time=TIME, command_id=None, principal="me")], expected=head)
    expected = await plainly(log)
    await log.close()
    verification = await verify_folder(folder)
    async with finder_in(folder, verification.head, sound=True) as finder:
        assert finder.upto == head
        assert await looked_up(finder) == expected


def test_log_explain_says_the_same_with_and_without_it(folder: Path, command: Callable[..., Ran]) -> None:
    words = ("gen-1", "gen-3", "10", "13", "first", CANARY)
    bare = [command("log", "explain", of, "--json", "--data-dir", str(folder)) for of in words]
    asyncio.run(indexed(folder))
    before = content(folder)
    assert [command("log", "explain", of, "--json", "--data-dir", str(folder)) for of in words] == bare
    assert content(folder) == before
    assert [ran.code for ran in bare] == [0] * len(words)
    assert [json.loads(line)["generation_id"] for line in bare[4].out.splitlines()] == ["gen-1", "gen-4"]


@pytest.mark.parametrize("cut_off", [True, False])
async def test_a_redaction_reaches_it(folder: Path, *, cut_off: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is answered; killed before that, the next start makes it good."""
    await indexed(folder)
    assert somewhere(folder / INDEX, CANARY)
    if cut_off:
        monkeypatch.setattr("sae_actor.eventlog.audit.redaction._forget", lambda *_: None)
    async with finder_in(folder, (await verify_folder(folder)).head, sound=True) as finder:
        (view,) = (await looked_up(finder))["{'generation_id': 'gen-3'}"]
    await redact(folder, view["position"], "asked for", time=TIME)
    if cut_off:
        assert somewhere(folder / INDEX, CANARY)
        await indexed(folder)
    assert not any(somewhere(path, CANARY) for path in folder.iterdir())
    log = await SqliteLog.open(folder)
    expected = await plainly(log)
    await log.close()
    async with finder_in(folder, (await verify_folder(folder)).head, sound=True) as finder:
        assert finder.upto >= view["position"]
        assert await looked_up(finder) == expected
    await redact(folder, view["position"] + 1, "asked for", time=TIME)
    if cut_off:
        await indexed(folder)
    log = await SqliteLog.open(folder)
    expected = await plainly(log)
    await log.close()
    async with finder_in(folder, (await verify_folder(folder)).head, sound=True) as finder:
        assert await looked_up(finder) == expected


async def test_a_damaged_index_is_no_way_to_keep_what_is_redacted(folder: Path) -> None:
    await indexed(folder)
    data = bytearray((folder / INDEX).read_bytes())
    at = data.index(b"gen") if b"gen" in data else len(data) // 2
    data[at] ^= 1
    (folder / INDEX).write_bytes(data)
    started = next(e.position for e in a_life().events[::-1] if e.type == "GenerationFinished") + 1
    await redact(folder, started, "asked for", time=TIME)
    assert not any(somewhere(path, CANARY) for path in folder.iterdir())


def somewhere(path: Path, text: str) -> bool:
    return text.encode() in path.read_bytes()
