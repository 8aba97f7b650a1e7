"""The load script of restarts, in short: `python -m tests.bench.rolling`."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.bench.rolling import rolled


def test_restarts_under_a_supervisor_lose_no_request_that_is_sent_again(tmp_path: Path) -> None:
    """One as `systemctl restart` does it, and one because the service was killed."""
    found = rolled(tmp_path, restarts=1, failures=1, clients=4, say=lambda _: None)
    assert found.lost == []
    assert found.exits == [0, -signal.SIGKILL]
    assert min(found.made) > 0
    assert sum(found.made) <= found.begun == found.ended, "the start after the failure ends what was under way"
