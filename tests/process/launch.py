"""A real service process for fault tests: `python -m tests.process.launch DATA [--kill before|after N] …`.

The log, the hub, the actor and HTTP are the real ones; the engine is the one without torch, wide enough for the
bundled SAE, unless `--torch` asks for the real one. With `--kill` the process sends itself SIGKILL right before or
right after its N-th append. Of the models of the engine without torch there are no files, so none are fetched,
unless `--fetch-models` wants to see how that goes. `--quick` waits for a hub in fractions of a second where the
service has seconds. `--clock FILE` lets the wall clock go ahead by the seconds that the file holds at that moment.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

from sae_actor import serve
from sae_actor.config import load
from sae_actor.demo import SAE_FOLDER
from sae_actor.eventlog import SqliteLog
from sae_actor.hub import HuggingFaceHub
from tests.fakes.engine import FakeEngine
from tests.hub.conftest import QUICK
from tests.process.census import count_on_signal


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--kill", nargs=2, default=("never", "0"))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--step-seconds", type=float, default=0.0)
    parser.add_argument("--die-loading", action="store_true")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fetch-models", action="store_true")
    parser.add_argument("--clock", type=Path)
    parser.add_argument("--import-root", action="append", default=[str(SAE_FOLDER.parent)])
    given = parser.parse_args()
    count_on_signal(Path(given.data))
    when, number = given.kill[0], int(given.kill[1])
    _arm(when, number)
    engine = FakeEngine(
        hidden_size=576, num_layers=30, load_seconds=given.load_seconds, step_seconds=given.step_seconds
    )
    if given.die_loading:
        engine.load_model = _die  # type: ignore[method-assign, assignment]
    if not given.torch:
        serve._torch_engine = lambda settings: engine
    if not given.torch and not given.fetch_models:
        HuggingFaceHub.fetch_model = _nothing  # type: ignore[method-assign, assignment]
    if given.clock is not None:
        serve.SystemClock.now = partialmethod(_told, given.clock)  # type: ignore[method-assign, assignment]
    if given.quick:
        serve.HuggingFaceHub = partial(HuggingFaceHub, patience=QUICK, reserve_bytes=0)  # type: ignore[attr-defined, assignment]
    settings = load({"server.port": given.port, "data.dir": given.data, "hub.import_roots": given.import_root})
    return serve.run(settings)


def _told(_: serve.SystemClock, file: Path) -> str:
    time = datetime.now(UTC) + timedelta(seconds=float(file.read_text()))
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def _nothing(*_: Any) -> None:
    pass


async def _die(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(when: str, number: int) -> None:
    append = SqliteLog.append
    count = 0

    async def counted(self: SqliteLog, drafts: Sequence[Any], *, expected: int) -> Any:
        nonlocal count
        count += 1
        if when == "before" and count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        recorded = await append(self, drafts, expected=expected)
        if when == "after" and count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return recorded

    SqliteLog.append = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    raise SystemExit(main())
