"""A thousand readers of the event stream, beside litestar's own `ServerSentEvent` in the same run.

    python -m tests.bench.bench_stream [--readers 1000] [--events 5000] [--baseline-events 1000]

A real service process; clients that wait for each answer send Steer commands, so that every event is durable before
it is delivered; the readers are another process and check that each of them gets every event once and in order. One
more reader stops reading at once. The baseline is a bare litestar application that hands an event of as many bytes
to a queue for each reader when it gets a POST (nothing is made durable), with the same readers and the same load.

deliveries/s   events times readers, from the first command to the last byte at the last reader
commands       from sending a command to its answer, while all of them read
afterwards     what is alive in the service when the readers have left, beside what was before they came, a first wave
               of as many readers having come and gone
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from litestar import Litestar, get, post
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage

from sae_actor.api.server.listener import listen
from sae_actor.subscriptions.broadcast import RING
from tests.bench.load import connected, load, percentile, request
from tests.process.census import Census, census
from tests.process.harness import ROOT, Process, until
from tests.process.test_kill import SAE_ID, SCRIPT

WARM_UP = 500
FIRST_WAVE = RING
"""Events for readers who come and go before anything is counted: the ring of recent ones is full then."""
STEER = json.dumps({"type": "Steer", "sae_id": SAE_ID, "features": [{"feature": 1, "strength": 1}]}).encode()
MARK = "0a1b2c3d"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--events", type=int, default=5000)
    parser.add_argument("--baseline-events", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8, help="that send commands, each waiting for its answer")
    parser.add_argument("--serve-baseline", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve_baseline:
        serve_baseline(given.serve_baseline)
        return
    mine = service(given.readers, given.events, given.clients)
    other = baseline(given.readers, given.baseline_events, given.clients)
    print(f"ratio                 {mine / other:10.1f}")


def service(readers: int, events: int, clients: int) -> float:
    """Deliveries a second of the service; prints everything."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with Process(data) as process:
            for key, command in SCRIPT[:3]:
                assert process.send(key, **command)["status"] == "completed"
            raw = request("/api/commands", STEER)
            load(process.url, raw, connections=clients, count=WARM_UP)
            alone = load(process.url, raw, connections=clients, count=WARM_UP)
            fresh = census(process.pid, data)
            first = head(process) + 1
            with reading(process.url, readers, first, first + FIRST_WAVE - 1) as finished:
                load(process.url, raw, connections=clients, count=FIRST_WAVE)
                finished()
            before = settled(process.pid, data, fresh)
            first = head(process) + 1
            stalled = connected(process.url, receive_buffer=4096)
            stalled.sendall(request(f"/api/events?after={first - 1}", method="GET"))
            with reading(process.url, readers, first, first + events - 1) as finished:
                began = time.monotonic()
                times = load(process.url, raw, connections=clients, count=events)
                ended, taken = finished()
            rate = readers * events / (ended - began)
            print(
                f"sae-actor             {rate:10,.0f} deliveries/s: {events} events to {readers} readers, once and in "
                f"order, one more stalled; {taken / (ended - began) / 1e6:.0f} MB/s"
            )
            busy, quiet = (f"p50 {percentile(each, 0.5) * 1e3:.1f} ms, p99 {percentile(each, 0.99) * 1e3:.1f} ms"
                           for each in (times, alone))  # fmt: skip
            print(f"  commands            {busy}; without readers {quiet}")
            stalled.close()
            report(fresh, before, settled(process.pid, data, before))
    return rate


def settled(pid: int, data: Path, before: Census) -> Census:
    """The count once the service has noticed that its readers have left."""
    after = census(pid, data)

    def left() -> bool:
        nonlocal after
        after = census(pid, data)
        return after.files <= before.files and after.tasks <= before.tasks

    until(left, 20)
    return after


def head(process: Process) -> int:
    position: int = process.client.get("/api/log", params={"limit": 1}).json()["head"]["position"]
    return position


def report(fresh: Census, before: Census, after: Census) -> None:
    """Beside a count from before the first readers: what the allocator keeps for the next ones came with those."""
    for name in ("objects", "tasks", "files", "resident"):
        counts = [getattr(each, name) for each in (fresh, before, after)]
        shown = [f"{each / 2**20:.1f} MiB" if name == "resident" else f"{each:,}" for each in counts]
        print(
            f"  afterwards          {name:9}{shown[1]:>12} before,{shown[2]:>12} after ({counts[2] / counts[1]:.2f}); "
            f"{shown[0]} before a first wave of readers"
        )


@contextmanager
def reading(url: str, readers: int, first: int, last: int) -> Iterator[Callable[[], tuple[float, int]]]:
    """Readers who have all begun; call what this gives to wait for them: (time of the last one, bytes)."""
    command = [sys.executable, "-m", "tests.bench.readers", url, str(readers), str(first), str(last)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout
        assert output.readline() == "ready\n"

        def finished() -> tuple[float, int]:
            ended, taken = output.readline().split()
            return float(ended), int(taken)

        yield finished


def baseline(readers: int, events: int, clients: int) -> float:
    """Deliveries a second of litestar's own server-sent events."""
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.bench.bench_stream", "--serve-baseline", str(port)]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        until(lambda: answers(url), 20)
        with reading(url, readers, 1, events) as finished:
            began = time.monotonic()
            load(url, request("/publish", STEER), connections=clients, count=events, good=(201,))
            ended, _ = finished()
    finally:
        process.terminate()
        process.wait(20)
    rate = readers * events / (ended - began)
    print(f"ServerSentEvent       {rate:10,.0f} deliveries/s: {events} events to as many readers")
    return rate


def answers(url: str) -> bool:
    try:
        connected(url).close()
    except OSError:
        return False
    return True


def serve_baseline(port: int) -> None:
    """What someone would write with litestar alone."""
    queues: set[asyncio.Queue[tuple[int, str]]] = set()
    edit = {"feature": 1, "strength": 1.0, "method": "add", "positions": "all", "exclude": [], "unit": "raw",
            "sae_id": None, "when": None}  # fmt: skip
    event = {
        "position": 1, "event_id": "0" * 36, "type": "SteeringChanged", "schema": 1, "hash": "0" * 64,
        "time": "2026-01-01T00:00:00.000000Z", "command_id": "0" * 36, "principal": "local",
        "data": {"request_sha256": "0" * 64, "sae_id": SAE_ID, "enabled": True, "features": [edit]},
    }  # fmt: skip
    count = 0

    @post("/publish")
    async def publish(data: dict[str, Any]) -> dict[str, int]:
        nonlocal count
        count += 1
        text = json.dumps({**event, "position": count})
        for queue in queues:
            queue.put_nowait((count, text))
        return {"position": count}

    @get("/api/events")
    async def follow() -> ServerSentEvent:
        queue: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
        queues.add(queue)

        async def messages() -> AsyncIterator[ServerSentEventMessage]:
            try:
                while True:
                    position, text = await queue.get()
                    yield ServerSentEventMessage(data=text, event="SteeringChanged", id=f"{MARK}.{position}")
            finally:
                queues.discard(queue)

        return ServerSentEvent(messages())

    app = Litestar([publish, follow], openapi_config=None, logging_config=None)
    config = uvicorn.Config(app, port=port, lifespan="off", log_level="error", access_log=False,
                            timeout_graceful_shutdown=1)  # fmt: skip
    uvicorn.Server(config).run([listen("127.0.0.1", port)])


if __name__ == "__main__":
    main()
