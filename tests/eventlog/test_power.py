"""Power loss: what was answered survives it, at any moment; without the sync of every commit it would not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from sae_actor.errors import LogError
from sae_actor.eventlog import SqliteLog
from tests.eventlog.power import Step, after_power_loss, answers, trace

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")]


def steps_of(folder: Path, synchronous: str) -> list[Step]:
    try:
        return trace(folder, "tests.eventlog.powered", synchronous)
    except OSError as error:
        pytest.skip(f"strace may not be used here: {error}")


async def lost(steps: list[Step], folder: Path, seed: int) -> str | None:
    """What is wrong with the log after this power loss."""
    acknowledged = answers(steps)
    after_power_loss(steps, folder, random.Random(seed))
    try:
        log = await SqliteLog.open(folder)
    except LogError as error:
        return f"refused: {error}"
    try:
        events = await log.read(0, log.head.position)
        hashes = {event.position: event.hash for event in events}
        gone = [position for position, digest in acknowledged.items() if hashes.get(position) != digest]
        return f"lost {gone}" if gone else None
    finally:
        await log.close()
        shutil.rmtree(folder)


async def test_what_was_answered_survives_a_power_loss_at_any_moment(tmp_path: Path) -> None:
    """Row 11."""
    steps = steps_of(tmp_path / "log", "full")
    assert len(answers(steps)) == 51
    assert sum(step.kind == "sync" for step in steps) > 51
    chance = random.Random(5)
    moments = sorted({*(chance.randrange(len(steps)) for _ in range(250)), len(steps)})
    for moment in moments:
        assert await lost(steps[:moment], tmp_path / "found", seed=moment) is None, f"power loss behind step {moment}"
    print(f"{len(moments)} power losses over {len(steps)} steps, {len(answers(steps))} acknowledged, lost = 0")


async def test_a_log_that_does_not_sync_every_commit_fails_this_test(tmp_path: Path) -> None:
    """Row 11, the mutant."""
    steps = steps_of(tmp_path / "log", "normal")
    moments = [number for number, step in enumerate(steps) if step.kind == "answer"]
    losses = [await lost(steps[: moment + 1], tmp_path / f"{moment}", seed=moment) for moment in moments]
    assert sum(loss is not None for loss in losses) > len(moments) / 4
