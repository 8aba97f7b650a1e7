"""Row 26: a wall clock that goes back, jumps ten years or past 2038. Positions alone order the log."""

from __future__ import annotations

import itertools
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sae_actor.cli import main

from .harness import Process

HOUR, YEAR = 3600.0, 365.25 * 86400


def test_row_26_a_clock_that_jumps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, clock = tmp_path / "data", tmp_path / "clock"
    past_2038 = datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC).timestamp() - time.time()
    offsets = [0.0, -HOUR, 10 * YEAR, past_2038, -30 * YEAR, 0.0]
    clock.write_text("0")
    with Process(data, "--clock", str(clock)) as process:
        for number, offset in enumerate(offsets):
            clock.write_text(str(offset))
            # Waiting is by the clock that never goes back: an outcome comes at once, and an open one in its time.
            began = time.monotonic()
            assert process.send(f"load-{number}", type="LoadModel", model=f"tiny-{number}")["status"] == "completed"
            assert time.monotonic() - began < 5
        events = process.events()
        verification = process.client.get("/api/log/verify").json()
        state = process.client.get("/api/state").json()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert [event["position"] for event in events] == list(range(1, 2 * len(offsets) + 2))
    for number, offset in enumerate(offsets):
        told = datetime.fromisoformat(events[1 + 2 * number]["time"]).timestamp()
        assert abs(told - (time.time() + offset)) < 60, "a time is kept as it was told"
    assert [event["data"]["model"] for event in events if event["type"] == "ModelLoadRequested"] == [
        f"tiny-{number}" for number in range(len(offsets))
    ]
    # Back by an hour, from 2036 and 2038 (which of the two is later depends on today) to thirty years ago.
    went_back = [after["position"] for before, after in itertools.pairwise(events)
                 if after["time"] < before["time"]]  # fmt: skip
    assert {4, 10} <= set(went_back)
    assert verification["ok"]
    assert verification["clock_skew"] == went_back
    assert main(["log", "verify", "--data-dir", str(data)]) == 0
    assert "the clock went back before 4" in capsys.readouterr().out
    with Process(data) as process:
        process.until_ready()
        assert process.client.get("/api/state", params={"at": len(events)}).json() == state
