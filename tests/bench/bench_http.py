"""POST to durable answer under many clients, beside a bare litestar handler with one SQLite FULL commit, in one run.

    python -m tests.bench.bench_http [--clients 32] [--count 4000] [--runs 5]

Two processes, each with its own loop, HTTP stack and database on the same disk, and one load tool that takes turns
between them: so many keep-alive connections, each sending its next request when it has its answer. The baseline's
handler reads a JSON body and commits one row of as many bytes as our event through aiosqlite, and answers 202; it
checks nothing, decides nothing, keeps no chain. `ratio` is our requests a second over the baseline's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import uvicorn
from litestar import Litestar, Response, post

from sae_actor.api.server.listener import listen
from tests.bench.bench_stream import answers
from tests.bench.load import load, percentile, request
from tests.process.harness import ROOT, Process, until
from tests.process.test_kill import SAE_ID, SCRIPT

STEER = json.dumps({"type": "Steer", "sae_id": SAE_ID, "features": [{"feature": 1, "strength": 1}]}).encode()
EVENT = b"x" * 600
WARM_UP = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--count", type=int, default=4000, help="requests in each run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--serve-baseline", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve_baseline:
        serve_baseline(int(given.serve_baseline[0]), Path(given.serve_baseline[1]))
        return
    with tempfile.TemporaryDirectory() as folder, Process(Path(folder) / "data") as process, \
            bare(Path(folder)) as url:  # fmt: skip
        for key, command in SCRIPT[:3]:
            assert process.send(key, **command)["status"] == "completed"
        raw = request("/api/commands", STEER)
        targets = {"sae-actor": process.url, "bare handler": url}
        for each in targets.values():
            load(each, raw, connections=given.clients, count=WARM_UP)
        runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in targets}
        for _ in range(given.runs):
            for name, each in targets.items():
                began = time.perf_counter()
                times = load(each, raw, connections=given.clients, count=given.count)
                rate = given.count / (time.perf_counter() - began)
                runs[name].append((rate, percentile(times, 0.5) * 1e3, percentile(times, 0.99) * 1e3))
    print(f"{given.clients} clients, median of {given.runs} runs of {given.count} requests")
    print(f"{'':16}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}")
    rates = {}
    for name, measured in runs.items():
        rate, p50, p99 = (statistics.median(column) for column in zip(*measured, strict=True))
        rates[name] = rate
        print(f"{name:16}{rate:12,.0f}{p50:9.1f}{p99:9.1f}")
    ratios = [mine[0] / other[0] for mine, other in zip(runs["sae-actor"], runs["bare handler"], strict=True)]
    print(f"{'ratio':16}{statistics.median(ratios):12.2f}")


@contextmanager
def bare(folder: Path) -> Iterator[str]:
    """The baseline in a process of its own; its address."""
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.bench.bench_http", "--serve-baseline", str(port), str(folder / "bare.db")]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            until(lambda: answers(f"http://127.0.0.1:{port}"), 20)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def serve_baseline(port: int, database: Path) -> None:
    """What someone would write with litestar and aiosqlite alone."""
    db: aiosqlite.Connection

    @asynccontextmanager
    async def opened(app: Litestar) -> AsyncIterator[None]:
        nonlocal db
        async with aiosqlite.connect(database, isolation_level=None) as db:
            await db.execute("PRAGMA journal_mode = WAL")
            await db.execute("PRAGMA synchronous = FULL")
            await db.execute("CREATE TABLE events (position INTEGER PRIMARY KEY, data BLOB) STRICT")
            yield

    @post("/api/commands", status_code=202)
    async def command(data: dict[str, Any]) -> Response[dict[str, Any]]:
        cursor = await db.execute("INSERT INTO events (data) VALUES (?)", (EVENT,))
        position = cursor.lastrowid
        await cursor.close()
        return Response({"command_id": "0" * 36, "position": position, "status": "accepted"})

    app = Litestar([command], openapi_config=None, logging_config=None, lifespan=[opened])
    config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run([listen("127.0.0.1", port)])


if __name__ == "__main__":
    main()
