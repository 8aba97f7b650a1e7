"""Rows 31 to 36: what a client can send, or fail to send, to a real service process.

row  test
31   test_row_31_a_full_mailbox
32   test_row_32_a_client_that_goes_away
33   test_row_33_what_is_no_json
34   test_row_34_nesting_and_keys
35   test_row_35_bodies_too_large_or_too_slow (the rest of it: tests/api/server/test_protocol.py)
36   test_row_36_other_media_types
37   … 41: test_network_values.py
70   test_row_70_strangers, test_row_71_tokens, 73 and 74: test_network_access.py and test_network_limits.py
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]  # has no stubs here

from tests.api.raw import parsed
from tests.children import child
from tests.process.network import (
    COMMANDS,
    LIMIT,
    TOKEN,
    connected,
    head,
    position,
    refused,
    resident,
    started,
    to_the_end,
    whole,
)

from .harness import Process, until
from .test_kill import SAE_ID, SCRIPT

# — the mailbox —

PROBE = """
import json, socket, sys, time
port, until, found = int(sys.argv[1]), time.monotonic() + float(sys.argv[2]), []
while time.monotonic() < until:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"GET /health HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nConnection: close\\r\\n\\r\\n")
        answer = b""
        while more := raw.recv(4096):
            answer += more
    assert answer.startswith(b"HTTP/1.1 200"), answer
    found.append(time.monotonic() - began)
    time.sleep(0.02)
print(json.dumps(found))
"""
FLOODED = 700
"""Connections that post at once: far more than the mailbox holds."""


async def _flood(process: Process, posts: int) -> dict[int, int]:
    """Status → how often. Each 429 must say when to come again."""
    body = json.dumps({"type": "Steer", "sae_id": SAE_ID, "features": [{"feature": 1, "strength": 1.0}]}).encode()
    request = head(COMMANDS, f"Content-Length: {len(body)}") + body
    counted: dict[int, int] = {}
    left = posts

    async def poster() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection("127.0.0.1", int(process.url.rpartition(":")[2]))
        while left > 0:
            left -= 1
            writer.write(request)
            answer = parsed(await reader.readuntil(b"\r\n\r\n"))
            await reader.readexactly(int(answer.header("content-length") or 0))
            counted[answer.status] = counted.get(answer.status, 0) + 1
            assert answer.status != 429 or int(answer.header("retry-after") or 0) >= 1
        writer.close()

    await asyncio.gather(*(poster() for _ in range(FLOODED)))
    return counted


def test_row_31_a_full_mailbox(tmp_path: Path) -> None:
    """429 with Retry-After, memory flat, and /health still at once, for a client beside the flood."""
    slow = {"LIMITS": "APPEND=0.1", "SAE_ACTOR_SERVER_REQUEST_SECONDS": "60"}  # this process is slow, too
    with started(tmp_path / "data", module="tests.process.limited", **slow) as process:
        for key, command in SCRIPT[:3]:
            assert process.send(key, **command)["status"] == "completed"
        before, known = resident(process), position(process)
        probing = [sys.executable, "-c", PROBE, process.url.rpartition(":")[2], "3"]
        with child(probing, stdout=subprocess.PIPE, text=True) as probe:
            counted = asyncio.run(_flood(process, 10_000))
            told = sorted(json.loads(probe.communicate()[0]))
        assert set(counted) == {202, 429}
        assert sum(counted.values()) == 10_000
        assert position(process) == known + counted[202]
        assert resident(process) - before < 32 * 1024 * 1024
        whole(process)
    print(f"health during the flood: median {told[len(told) // 2] * 1e3:.0f} ms, {counted}")
    assert told[len(told) // 2] < 0.1


# — clients that go —


def test_row_32_a_client_that_goes_away(tmp_path: Path) -> None:
    """In the middle of its body, right behind it, and while it waits: what was accepted completes, once."""
    with started(tmp_path / "data", "--load-seconds", "0.5") as process:
        load = json.dumps({"type": "LoadModel", "model": "tiny"}).encode()
        for lines, body in (
            ((f"Content-Length: {len(load)}",), load[:10]),
            ((f"Content-Length: {len(load)}", "Idempotency-Key: gone"), load),
            ((f"Content-Length: {len(load)}", "Idempotency-Key: waits", "Prefer: wait=20"), load),
        ):
            raw = connected(process)
            raw.sendall(head(COMMANDS, *lines) + body)
            time.sleep(0.2)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()  # with a reset
        for key in ("gone", "waits"):
            outcome = process.send(key, type="LoadModel", model="tiny")
            assert outcome["status"] == "completed"
            assert process.client.get(f"{COMMANDS}/{outcome['command_id']}").json() == outcome
        types = [event["type"] for event in process.events()]
        assert types.count("ModelLoadRequested") == 2
        assert types.count("ModelLoaded") == 1
        whole(process)


# — bodies —


def test_row_33_what_is_no_json(service: Process) -> None:
    good = b'{"type":"UnloadModel"}'
    for body in (
        b"", b" ", b"{", b"[]", b"null", b'"x"', b"0", good[:-1], good + good, good + b"x", b"\xef\xbb\xbf" + good,
        b'{"type":"Detach","sae_id":"\xff"}', b'{"type":"Detach","sae_id":"\xc0\xaf"}', good.decode().encode("utf-16"),
        b"{'type':'UnloadModel'}", b'{"type":"UnloadModel",}', b'{"type":UnloadModel}', b"\x00" + good, b"/**/" + good,
    ):  # fmt: skip
        for method, path in (("POST", COMMANDS), ("POST", "/api/saes/download"), ("POST", "/v1/completions"),
                             ("PUT", f"/api/saes/{SAE_ID}/steering")):  # fmt: skip
            refused(service, 400, body, path, method)


def test_row_34_nesting_and_keys(service: Process) -> None:
    before = resident(service)
    many = b'{"type":"UnloadModel"' + b"".join(b',"k%d":0' % n for n in range(300_000)) + b"}"
    began = time.monotonic()
    for body in (
        b"[" * 9000, b'{"a":' * 9000, b"[" * 1_000_000, many,
        b'{"type":"Detach","sae_id":' + b"[" * 9000 + b"]" * 9000 + b"}",
        b'{"type":"Detach","sae_id":"a","sae_id":"a"}', b'{"type":"UnloadModel","type":"UnloadModel"}',
        b'{"type":"Steer","sae_id":"a","features":[{"feature":1,"feature":2,"strength":1}]}',
        b'{"type":"Detach","sae_id":"a","\\u0073ae_id":"b"}',
    ):  # fmt: skip
        refused(service, 400, body)
    refused(service, 413, b'{"type":"UnloadModel"' + b"".join(b',"k%d":0' % n for n in range(1_000_000)) + b"}")
    assert time.monotonic() - began < 30
    assert resident(service) - before < 64 * 1024 * 1024


def test_row_35_bodies_too_large_or_too_slow(service: Process) -> None:
    for path in (COMMANDS, "/v1/completions", "/api/activations"):
        with connected(service) as raw:
            raw.sendall(head(path, f"Content-Length: {10 * 1024 * 1024}", "Connection: close"))
            assert parsed(to_the_end(raw)).status == 413  # before a byte of it has come
    refused(service, 413, b" " * (10 * 1024 * 1024))
    with connected(service) as raw:
        raw.sendall(head(COMMANDS, "Transfer-Encoding: chunked"))
        piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
        try:
            for _ in range(200):
                raw.sendall(piece)
        except ConnectionError:
            pass  # it does not listen any more
        assert parsed(to_the_end(raw)).status == 413
    for start in (
        b"POST /api/comm",
        head(COMMANDS, "Content-Length: 30"),
        head(COMMANDS, "Transfer-Encoding: chunked"),
    ):
        with connected(service) as raw:
            began = time.monotonic()
            raw.sendall(start)
            answer = parsed(to_the_end(raw))
            assert (answer.status, json.loads(answer.body)["code"]) == (408, "request_timeout")
            assert LIMIT <= time.monotonic() - began < 3 * LIMIT


def test_row_36_other_media_types(service: Process) -> None:
    good, before = b'{"type":"UnloadModel"}', resident(service)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json",
                 "application/msgpack", "application/x-msgpack", "application/json-seq", "*/*", "", None):  # fmt: skip
        assert refused(service, 415, good, kind=kind)["code"] == "unsupported_media_type"
    refused(service, 415, b"\xdd\xff\xff\xff\xff", kind="application/msgpack")
    refused(service, 400, b"\xdd\xff\xff\xff\xff")
    assert resident(service) - before < 16 * 1024 * 1024
    answer = service.client.post(COMMANDS, content=b"{}", headers={"content-type": "Application/JSON ; charset=utf-8"})
    assert answer.status_code == 400  # read, and found wanting


def test_a_reader_that_stops_is_let_go(service: Process) -> None:
    """The whole log as lines, over and over, and nobody takes it."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", int(service.url.rpartition(":")[2])))
        asked = f"GET /schema HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        raw.sendall(asked * 100)
        process = psutil.Process(service.pid)
        own = raw.getsockname()[1]

        def held() -> bool:
            return any(each.raddr and each.raddr.port == own for each in process.net_connections())

        until(held)
        until(lambda: not held(), 5 * LIMIT)
    assert isinstance(httpx.get(f"{service.url}/health").json()["position"], int)
