"""Right requests with wrong bytes in them, sixty-four connections at a time, to a real process with an SAE attached.

The requests are the examples of the description, and what reads beside them; what is done to each is drawn by chance
from a seed that a failure prints. The default run goes on for three seconds; `-m fuzz` for two minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import secrets
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # has no stubs here
import pytest

import sae_actor.api.app  # noqa: F401 - fills the table of routes
from sae_actor.api.openapi import document
from sae_actor.api.operations import OPERATIONS

from .harness import Process, until
from .network import ENVIRONMENT, TOKEN, whole
from .test_kill import SAE_ID, SCRIPT

AT_ONCE = 64
PATIENCE = 0.3
"""Seconds that an answer is waited for: a stream has none, and what is not whole waits for its rest."""


def right_requests(rng: random.Random) -> list[bytes]:
    """Every route, with each of its example bodies, about the SAE that is there."""
    found = []
    for each in OPERATIONS:
        path = re.sub(r"{sae_id}", SAE_ID, each.path).replace("{feature}", "584")
        path = re.sub(r"{\w+}", "default", path)
        for body in [*each.examples.values(), {}] if each.body is not None else [None]:
            about = json.loads(json.dumps(body).replace(document.SAE_ID, SAE_ID))
            found.append(_request(each.method, path, about, rng))
    return found


def _request(method: str, path: str, body: Any, rng: random.Random) -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {TOKEN}"]
    head += rng.sample(["Prefer: wait=1", "Idempotency-Key: k", "If-Match: *", "Last-Event-ID: x.1"], 2)
    sent = b"" if body is None else json.dumps(body).encode()
    if sent:
        head += ["Content-Type: application/json", f"Content-Length: {len(sent)}"]
    return "\r\n".join([*head, "", ""]).encode() + sent


def changed(raw: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four of: bits flipped, bytes put in, taken out or doubled, a cut, the tail of another request."""
    made = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(made) + 1), rng.randint(1, 20)
        match rng.randrange(7):
            case 0 if at < len(made):
                made[at] ^= 1 << rng.randrange(8)
            case 1:
                made[at:at] = rng.randbytes(size)
            case 2:
                del made[at : at + size]
            case 3:
                made[at:at] = made[at : at + size] * rng.randint(1, 50)
            case 4:
                made = made[:at]
            case 5:
                made[at:] = other[rng.randrange(len(other)) :]
            case _:
                made += other
    return bytes(made)


async def throw(url: str, seconds: float, rng: random.Random) -> Counter[bytes]:
    """How many were `thrown`, and the first bytes of the answers: those of the status line."""
    requests, told = right_requests(rng), Counter[bytes]()
    until_then = time.monotonic() + seconds
    host, _, port = url.removeprefix("http://").partition(":")

    async def one_after_another() -> None:
        while time.monotonic() < until_then:
            raw = changed(rng.choice(requests), rng.choice(requests), rng)
            with contextlib.suppress(OSError, TimeoutError):
                reader, writer = await asyncio.open_connection(host, int(port))
                try:
                    told[b"thrown"] += 1
                    writer.write(raw)
                    if rng.random() < 0.3:
                        writer.write_eof()
                    async with asyncio.timeout(PATIENCE * rng.random()):
                        told[await reader.read(12)] += 1
                finally:
                    # Half of them hang up without a word.
                    writer.transport.abort() if rng.random() < 0.5 else writer.close()

    await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))
    return told


def numbers(process: Process) -> dict[str, float]:
    text = process.client.get("/metrics").text
    rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in rows}


def is_unhurt(tmp_path: Path, seconds: float) -> Counter[bytes]:
    seed = secrets.randbits(32)
    rng = random.Random(seed)
    print(f"seed {seed}")
    with Process(tmp_path / "data", environment=ENVIRONMENT) as process:
        process.client.headers["authorization"] = f"Bearer {TOKEN}"
        for key, command in SCRIPT[:4]:
            assert process.send(key, **command)["status"] == "completed"
        own = psutil.Process(process.pid)

        def idle() -> bool:
            return (
                len(own.net_connections()) <= 2 and numbers(process)['sae_actor_generation_queue{state="running"}'] == 0
            )

        told = asyncio.run(throw(process.url, seconds / 3, rng))
        until(idle, 20)
        files, tasks, resident = own.num_fds(), numbers(process)["sae_actor_tasks"], own.memory_info().rss
        told += asyncio.run(throw(process.url, seconds * 2 / 3, rng))
        until(idle, 20)
        until(lambda: own.num_fds() <= files and numbers(process)["sae_actor_tasks"] <= tasks, 20)
        assert numbers(process)["sae_actor_subscribers"] == 0
        assert own.memory_info().rss < 1.2 * resident + 2**24
        assert process.client.get("/health").status_code == 200
        whole(process)
        assert process.stderr.read_text() == ""
        answered = numbers(process)
    print(dict(told))
    faults = [name for name in answered if name.startswith("sae_actor_http_requests_total") and 'status="500"' in name]
    assert faults == []
    assert told[b"HTTP/1.1 400"] > 0
    assert told[b"HTTP/1.1 200"] > 0
    return told


@pytest.mark.timeout(90)
def test_a_moment_of_wrong_requests(tmp_path: Path) -> None:
    is_unhurt(tmp_path, 3)


@pytest.mark.fuzz
@pytest.mark.timeout(400)
def test_two_minutes_of_wrong_requests(tmp_path: Path) -> None:
    is_unhurt(tmp_path, 120)
