"""A real service process for fault tests: `python -m tests.process.launch DATA [--kill before|after N] …`.

The log, the hub, the actor and HTTP are the real ones; the engine is the one without torch, wide enough for the
bundled SAE, unless `--torch` asks for the real one. With `--kill` the process sends itself SIGKILL right before or
right after its N-th append. Of the models of the engine without torch there are no files, so none are fetched,
unless `--fetch-models` wants to see how that goes. `--quick` waits for a hub in fractions of a second where the
service has seconds. `--clock FILE` lets the clock go ahead by the seconds that the file holds at that moment;
`--running N` is how many texts the engine without torch runs at a time.
With `--never-ends` the hub says `closing` where it is to close, and does not: only a second signal ends the process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sae_actor.config import ConfigurationError, Deployment, load, resolve
from sae_actor.demo import SAE_FOLDER
from sae_actor.errors import LogError
from sae_actor.eventlog import SqliteLog
from sae_actor.hub import HuggingFaceHub
from sae_actor.ports.clock import SystemClock
from sae_actor.service import process
from sae_actor.service.adapters import Adapters
from sae_actor.telemetry import logs
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
    parser.add_argument("--running", type=int, default=4)
    parser.add_argument("--measure-seconds", type=float, default=0.0)
    parser.add_argument("--die-loading", action="store_true")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fetch-models", action="store_true")
    parser.add_argument("--never-ends", action="store_true")
    parser.add_argument("--clock", type=Path)
    parser.add_argument("--import-root", action="append", default=[str(SAE_FOLDER.parent)])
    given = parser.parse_args()
    count_on_signal(Path(given.data))
    engine = _Dying if given.die_loading else FakeEngine
    adapters = Adapters(log=_log(*given.kill))
    if not given.torch:
        make = partial(engine, hidden_size=576, num_layers=30)
        slow = partial(
            make,
            load_seconds=given.load_seconds,
            step_seconds=given.step_seconds,
            measure_seconds=given.measure_seconds,
            max_running=given.running,
        )
        adapters = replace(adapters, engine=lambda _: slow())
    hub: Callable[..., HuggingFaceHub] = HuggingFaceHub if given.torch or given.fetch_models else _HubWithoutModels
    if given.never_ends:
        hub = _NeverClosing
    if given.quick:
        hub = partial(hub, patience=QUICK, reserve_bytes=0)
    adapters = replace(adapters, hub=hub)
    if given.clock is not None:
        adapters = replace(adapters, clock=_FastClock(given.clock))

    def reread() -> Deployment:
        flags = {"server.port": given.port, "data.dir": given.data, "hub.import_roots": given.import_root}
        return resolve(load(flags))

    try:
        deployment = reread()
        logs.set_up(deployment.settings.server.log_format, deployment.settings.server.log_level)
        return process.run(deployment, adapters=adapters, reread=reread)
    except (ConfigurationError, LogError) as error:  # as the command line does it
        logs.say(str(error))
        return error.exit_code


class _FastClock(SystemClock):
    """As many seconds ahead as a file says."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def now(self) -> str:
        time = datetime.now(UTC) + timedelta(seconds=float(self._file.read_text()))
        return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def monotonic(self) -> float:
        return super().monotonic() + float(self._file.read_text())


class _HubWithoutModels(HuggingFaceHub):
    """The models of the engine without torch have no files."""

    async def fetch_model(self, *_: Any, **__: Any) -> None:
        pass


class _NeverClosing(_HubWithoutModels):
    """Waits for ever where the service waits for it."""

    async def close(self) -> None:
        print("closing", flush=True)
        await asyncio.get_running_loop().create_future()


class _Dying(FakeEngine):
    """Dies as it loads a model."""

    async def load_model(self, *_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def _log(when: str, number: str) -> type[SqliteLog]:
    """A log whose process dies right before or after an append."""

    class Killing(SqliteLog):
        count = 0

        async def append(self, drafts: Sequence[Any], *, expected: int) -> Any:
            Killing.count += 1
            due = Killing.count == int(number)
            if when == "before" and due:
                os.kill(os.getpid(), signal.SIGKILL)
            recorded = await super().append(drafts, expected=expected)
            if when == "after" and due:
                os.kill(os.getpid(), signal.SIGKILL)
            return recorded

    return Killing


if __name__ == "__main__":
    raise SystemExit(main())
