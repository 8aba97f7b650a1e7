"""`log diff --other`: the last event that two histories of one log both have, and what came after in each."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from sae_actor.domain import events as ev
from sae_actor.eventlog import SqliteLog, export_bundle
from tests.cli.conftest import Ran
from tests.cli.logs import a_life, write
from tests.domain.dsl import edit

Command = Callable[..., Ran]
STARTED = ev.ActorStarted(version="1")


def steered(sae_id: str, feature: int) -> ev.SteeringChanged:
    return ev.SteeringChanged(sae_id=sae_id, features=(edit(feature),), enabled=True)


async def go_on(folder: Path, *payloads: ev.Payload) -> list[str]:
    """Append; the hashes of all events."""
    log = await SqliteLog.open(folder)
    drafts = [ev.draft(each, time="2026-02-01T00:00:00.000000Z", command_id=None, principal="me") for each in payloads]
    await log.append(drafts, expected=log.head.position)
    events = await log.read(0, 100)
    await log.close()
    return [event.hash for event in events]


@pytest.fixture
def logs(tmp_path: Path) -> tuple[Path, Path]:
    write(tmp_path / "mine", a_life())
    shutil.copytree(tmp_path / "mine", tmp_path / "other")
    return tmp_path / "mine", tmp_path / "other"


def compared(command: Command, mine: Path, other: Path, *, code: int = 0) -> Ran:
    ran = command("log", "diff", "--other", str(other), "--data-dir", str(mine), "--json")
    assert ran.code == code, ran
    return ran


@pytest.mark.parametrize("kind", ["folder", "export", "export.tar"])
def test_where_two_histories_part(logs: tuple[Path, Path], kind: str, command: Command) -> None:
    mine, other = logs
    saes = json.loads(command("log", "state", "--at", "12", "--data-dir", str(mine), "--json").out)["attachments"]
    (sae_id,) = [each["sae_id"] for each in saes]
    branch = "ab" * 16
    hashes = asyncio.run(go_on(mine, STARTED, STARTED))
    (at,) = [len(hashes) - 2]
    head = ev.LogHead(position=at, hash=hashes[at - 1])
    fork = ev.LogForked(reason="copied", branch_id=branch, parent_id="5e" * 16, parent_head=head)
    theirs = asyncio.run(go_on(other, fork, replace(STARTED, max_attachments=4), steered(sae_id, 7)))
    place = other
    if kind != "folder":
        place = other.with_name(kind)
        asyncio.run(export_bundle(other, place))
    view = json.loads(compared(command, mine, place).out)
    assert view["common"] == {"position": at, "hash": hashes[at - 1]}
    assert view["mine"]["head"] == {"position": at + 2, "hash": hashes[-1]}
    assert view["other"]["head"] == {"position": at + 3, "hash": theirs[-1]}
    assert (view["mine"]["events"], view["other"]["events"]) == (2, 3)
    assert (view["mine"]["branch_id"], view["other"]["branch_id"]) == (None, branch)
    assert (view["mine"]["forks"], [each["position"] for each in view["other"]["forks"]]) == ([], [at + 1])
    assert view["other"]["forks"][0]["data"]["parent_head"] == view["common"]
    shown = command("log", "diff", "--other", str(place), "--data-dir", str(mine)).out.splitlines()
    assert shown[0] == f"both have    {at} events, head {at} {hashes[at - 1]}"
    assert shown[1] == f"this log     goes on with 2 events, head {at + 2} {hashes[-1]}"
    assert f"the other    goes on with 3 events, head {at + 3} {theirs[-1]}" in shown
    assert f"  forked at {at + 1} (copied), its event ids abababab" in shown


def test_one_that_goes_on_and_one_that_does_not(logs: tuple[Path, Path], command: Command) -> None:
    mine, other = logs
    hashes = asyncio.run(go_on(mine, STARTED))
    view = json.loads(compared(command, other, mine).out)
    assert view["common"] == view["mine"]["head"] == {"position": 13, "hash": hashes[12]}
    assert (view["mine"]["events"], view["other"]["events"]) == (0, 1)
    shown = command("log", "diff", "--other", str(mine), "--data-dir", str(other)).out.splitlines()
    assert shown[1:3] == ["this log     ends there", f"the other    goes on with 1 event, head 14 {hashes[-1]}"]


def test_two_logs_are_not_two_histories(logs: tuple[Path, Path], tmp_path: Path, command: Command) -> None:
    write(tmp_path / "third", a_life())
    ran = compared(command, logs[0], tmp_path / "third", code=64)
    assert "two logs, not two histories of one" in ran.err


def test_a_damaged_one_is_no_evidence(logs: tuple[Path, Path], tmp_path: Path, command: Command) -> None:
    mine, other = logs
    stored = (other / "events.db").read_bytes()
    assert stored.count(b'"version":"') == 1
    (other / "events.db").write_bytes(stored.replace(b'"version":"', b'"versiom":"'))
    assert "event 1: " in compared(command, mine, other, code=65).err
    assert "event 1: " in compared(command, other, mine, code=65).err
    compared(command, mine, tmp_path / "nothing", code=64)


@pytest.mark.parametrize("words", [["1"], ["1", "2", "--other", "x"], ["1", "--other", "x"], []])
def test_either_positions_or_another_log(words: list[str], command: Command) -> None:
    ran = command("log", "diff", *words)
    assert ran.code == 64
    assert "--other LOG" in ran.err


def test_another_log_is_compared_with_files(command: Command) -> None:
    ran = command("log", "diff", "--other", "x", "--url", "http://127.0.0.1:9")
    assert (ran.code, "give --data-dir" in ran.err) == (64, True)
