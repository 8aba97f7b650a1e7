"""POST to durable answer, beside a raw SQLite FULL commit of as many bytes in the same run.

    python -m tests.bench.bench_turns [--runs 5] [--count 400]

A real service process on a real socket and a real disk; the engine is the one without torch, because no turn
waits for it. The baseline commits one row of the size of the event that a Steer appends.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.process.harness import Process
from tests.process.test_kill import SAE_ID, SCRIPT

EVENT_BYTES = 600


def timed(action: Callable[[], object], count: int) -> list[float]:
    """Milliseconds of each call."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        action()
        found.append((time.perf_counter() - start) * 1e3)
    return found


def quantiles(milliseconds: list[float]) -> tuple[float, float]:
    """p50 and p99."""
    ordered = sorted(milliseconds)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, round(len(ordered) * 0.99))]


def raw_commits(folder: Path, count: int) -> list[float]:
    connection = sqlite3.connect(folder / "raw.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS events (position INTEGER PRIMARY KEY, data BLOB) STRICT")
    data = b"x" * EVENT_BYTES
    found = timed(lambda: connection.execute("INSERT INTO events (data) VALUES (?)", (data,)), count)
    connection.close()
    return found


def posts(url: str, count: int, path: str, body: dict[str, object] | None) -> list[float]:
    """One keep-alive connection, as a client library has it."""
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    raw = json.dumps(body).encode() if body is not None else None
    headers = {"Content-Type": "application/json"} if raw is not None else {}

    def send() -> None:
        connection.request("POST" if raw is not None else "GET", path, raw, headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (200, 202), answer.status

    found = timed(send, count)
    connection.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--count", type=int, default=400)
    given = parser.parse_args()
    rows: dict[str, list[tuple[float, float]]] = {"raw FULL commit": [], "GET /health": [], "POST Steer, durable": []}
    with tempfile.TemporaryDirectory() as folder, Process(Path(folder) / "data") as process:
        for key, command in SCRIPT[:3]:
            assert process.send(key, **command)["status"] == "completed"
        steer: dict[str, object] = {"type": "Steer", "sae_id": SAE_ID, "features": [{"feature": 1, "strength": 1}]}
        for _ in range(given.runs):
            rows["raw FULL commit"].append(quantiles(raw_commits(Path(folder), given.count)))
            rows["GET /health"].append(quantiles(posts(process.url, given.count, "/health", None)))
            rows["POST Steer, durable"].append(quantiles(posts(process.url, given.count, "/api/commands", steer)))
    base50, base99 = (statistics.median(column) for column in zip(*rows["raw FULL commit"], strict=True))
    print(
        f"{'median of ' + str(given.runs) + ' runs':22}{'p50 ms':>10}{'p99 ms':>10}{'p50 ratio':>11}{'p99 ratio':>11}"
    )
    for name, measured in rows.items():
        p50, p99 = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{name:22}{p50:10.3f}{p99:10.3f}{p50 / base50:11.2f}{p99 / base99:11.2f}")


if __name__ == "__main__":
    main()
