"""Rows 31 to 41: what a client can send, or fail to send, to a real service process.

row  test
31   test_row_31_a_full_mailbox
32   test_row_32_a_client_that_goes_away
33   test_row_33_what_is_no_json
34   test_row_34_nesting_and_keys
35   test_row_35_bodies_too_large_or_too_slow (the rest of it: tests/api/server/test_protocol.py)
36   test_row_36_other_media_types
37   test_row_37_numbers_that_are_none
38   test_row_38_integers_that_are_none
39   test_row_39_features_and_layers_that_are_not_there
40   test_row_40_names_beyond_ascii
41   test_row_41_paths_that_lead_elsewhere
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]  # has no stubs here
import pytest

from tests.api.raw import parsed
from tests.children import child
from tests.fold_by_hand import Books

from .harness import Process, until
from .test_kill import SAE_ID, SCRIPT

TOKEN = "canary-4f1c9d0b7a6e"
LIMIT = 1.0
ENVIRONMENT = {
    "SAE_ACTOR_SERVER_TOKEN": TOKEN,
    "SAE_ACTOR_SERVER_REQUEST_SECONDS": str(LIMIT),
    "SAE_ACTOR_SERVER_STALLED_SECONDS": str(LIMIT),
}
COMMANDS = "/api/commands"
D_SAE, LAYERS = 2304, 30


def started(data: Path, *arguments: str, module: str = "tests.process.launch", **environment: str) -> Process:
    process = Process(data, *arguments, module=module, environment={**ENVIRONMENT, **environment})
    process.client.headers["authorization"] = f"Bearer {TOKEN}"
    return process


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One process for all rows: none of them may hurt it. A model is loaded, the bundled SAE attached."""
    with started(tmp_path_factory.mktemp("network") / "data") as process:
        for key, command in SCRIPT[:3]:
            assert process.send(key, **command)["status"] == "completed"
        yield process


@pytest.fixture
def service(running: Process) -> Iterator[Process]:
    yield running
    whole(running)


def whole(process: Process) -> None:
    """What is kept, and neither a token nor a fault of ours among what was said."""
    kept(process)
    assert TOKEN not in process.stderr.read_text()
    assert "Traceback" not in process.stderr.read_text()


def kept(process: Process) -> None:
    """The chain is whole, without a gap, the live state its fold, and no token in it."""
    assert process.client.get("/api/log/verify").json()["ok"]
    text = process.client.get("/api/log", headers={"accept": "application/x-ndjson"}).text
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["position"] for event in events] == list(range(1, len(events) + 1))
    books = Books()
    for event in events:
        books.enter(event)
    assert books.view() == process.client.get("/api/state").json()
    assert TOKEN not in text


def position(process: Process) -> int:
    found: int = process.client.get("/health").json()["position"]
    return found


def refused(process: Process, status: int, body: bytes | Any, path: str = COMMANDS, method: str = "POST", *,
            kind: str | None = "application/json") -> dict[str, Any]:  # fmt: skip
    """The problem that these bytes are answered with; nothing but a refusal by the rules went on record."""
    before = position(process)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {} if kind is None else {"content-type": kind}
    answer = process.client.request(method, path, content=content, headers=headers)
    assert answer.status_code == status, (content[:200], answer.text)
    on_v1 = path.startswith("/v1/")
    assert answer.headers["content-type"] == ("application/json" if on_v1 else "application/problem+json")
    problem: dict[str, Any] = answer.json()
    assert ("error" in problem) if on_v1 else (problem["status"] == status)
    grown = process.client.get("/api/log", params={"after": before}).json()["events"]
    assert {event["type"] for event in grown} <= {"CommandRejected"}, grown
    return problem


def connected(process: Process) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(process.url.rpartition(":")[2])), timeout=15)


def head(path: str, *lines: str) -> bytes:
    own = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {TOKEN}")
    return "\r\n".join([*own, "Content-Type: application/json", *lines, "", ""]).encode("latin-1")


def to_the_end(raw: socket.socket) -> bytes:
    found = b""
    try:
        while more := raw.recv(1 << 16):
            found += more
    except ConnectionError:
        pass
    return found


def resident(process: Process) -> int:
    size: int = psutil.Process(process.pid).memory_info().rss
    return size


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


# — numbers —


def _edits(strength: str) -> list[tuple[str, str, str]]:
    """Everywhere that an edit can be sent."""
    edits = f'[{{"feature":1,"strength":{strength}}}]'
    return [
        ("POST", COMMANDS, f'{{"type":"Steer","sae_id":"{SAE_ID}","features":{edits}}}'),
        ("PUT", f"/api/saes/{SAE_ID}/steering", f'{{"features":{edits}}}'),
        ("POST", "/v1/completions", f'{{"prompt":"a","max_tokens":1,"sae":{{"steering":{edits}}}}}'),
        ("POST", "/api/compare", f'{{"prompt":"a","max_tokens":1,"sae":{{"steering":{edits}}}}}'),
    ]


def test_row_37_numbers_that_are_none(service: Process) -> None:
    for strength in ("NaN", "Infinity", "-Infinity", "nan", "inf", "1e999", "-1e999", '"nan"', '"inf"', '"1"', "1e308",
                     "1000000.1", "-1000001", "true", "null", "[]", "{}", "0x10", "1_0", ".5", "+1", "01"):  # fmt: skip
        for method, path, body in _edits(strength):
            refused(service, 400, body.encode(), path, method)
    for field in ("temperature", "top_p"):
        for value in ("NaN", "1e999", '"1"', "-0.1", "true", "1e308"):
            refused(service, 400, f'{{"prompt":"a","{field}":{value}}}'.encode(), "/v1/completions")
    for method, path, body in _edits("-0.0"):
        answer = service.client.request(method, path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 202), answer.text


BIG = ("9" * 5000, str(2**63), str(2**64), "-1", "1.0", "1e3", "true", '"1"', "[1]")


def test_row_38_integers_that_are_none(service: Process) -> None:
    for value in BIG:
        for body in (f'{{"type":"Attach","sae_id":"{SAE_ID}","layer":{value}}}',
                     f'{{"type":"Monitor","sae_id":"{SAE_ID}","enabled":true,"top_k":{value}}}',
                     f'{{"type":"Steer","sae_id":"{SAE_ID}","features":[{{"feature":{value},"strength":1}}]}}',
                     ):  # fmt: skip
            refused(service, 400, body.encode())
        for field in ("max_tokens", "n", "logprobs"):
            refused(service, 400, f'{{"prompt":"a","{field}":{value}}}'.encode(), "/v1/completions")
        refused(service, 400, f'{{"prompt":"a","top_k":{value}}}'.encode(), "/api/activations")
        if value != "[1]":
            for name in ("after", "limit"):
                answer = service.client.get("/api/log", params={name: value.strip('"')})
                allowed = (200, 400) if value in ('"1"', str(2**63)) else (400,)
                assert answer.status_code in allowed, (name, value[:30], answer.text)
    for value in ("1.0", "true", '"1"', str(2**64), "9" * 5000):
        refused(service, 400, f'{{"prompt":"a","seed":{value}}}'.encode(), "/v1/completions")


def test_row_39_features_and_layers_that_are_not_there(service: Process) -> None:
    """422 where this SAE or this model says no, 400 where none could say yes; nothing changes."""
    before = service.client.get(f"/api/saes/{SAE_ID}/steering").json()
    attached = service.client.get("/api/saes/attachment").json()

    def steer(*features: int, method: str = "add") -> dict[str, Any]:
        edits = [{"feature": feature, "strength": 1.0, "method": method} for feature in features]
        return {"type": "Steer", "sae_id": SAE_ID, "features": edits}

    for feature in (D_SAE, D_SAE + 1, 2**31 - 1):
        assert refused(service, 422, steer(feature))["code"] == "feature_out_of_range"
        body = {"prompt": "a", "features": [feature]}
        assert refused(service, 422, body, "/api/activations")["code"] == "feature_out_of_range"
    for feature in (-1, 2**40):
        refused(service, 400, steer(feature))
        refused(service, 400, {"prompt": "a", "features": [feature]}, "/api/activations")
    for method in ("add", "set", "cap"):
        assert refused(service, 422, steer(5, 5, method=method))["code"] == "conflicting_edits"
    for layer, status in ((LAYERS, 422), (-1, 400), (2**40, 400)):
        refused(service, status, {"type": "Attach", "sae_id": SAE_ID, "layer": layer, "replace": True})
        refused(service, status, {"layer": layer, "replace": True}, f"/api/saes/{SAE_ID}/attach")
    assert service.client.get(f"/api/saes/{SAE_ID}/steering").json() == before
    assert service.client.get("/api/saes/attachment").json() == attached


# — names —

NAMES = ("caf\u00e9", "cafe\u0301", "\ud800", "a\x00b", "a\u202eb", "x" * 10_240, "\U0001f600", "a\r\nINJECTED: 1",
         "a\u2028b", "\u0661", "a\tb", "a\x7fb", "\ufeffa", "a\u200bb")  # fmt: skip


def test_row_40_names_beyond_ascii(service: Process) -> None:
    """Ids and places are ASCII, so there is one form of each; no name is a path, or a line in anybody's log."""

    def sent(**fields: Any) -> bytes:
        return json.dumps(fields).encode()  # a lone surrogate as an escape, as a client would write it

    for name in NAMES:
        for type_ in ("Detach", "Attach", "Delete", "CancelDownload"):
            refused(service, 400, sent(type=type_, sae_id=name))
        for fields in ({"repository_id": f"org/{name}"}, {"repository_id": "org/a", "revision": name},
                       {"repository_id": "org/a", "path": f"b/{name}"}):  # fmt: skip
            refused(service, 400, sent(type="Download", **fields))
    for name in ("", " ", "a/b", "a b", "a:b", "~"):
        refused(service, 400, sent(type="Detach", sae_id=name))
    for name in ("con", "a.", ".", "..", "-"):
        refused(service, 404, sent(type="Detach", sae_id=name))
    for key in ("caf\u00e9", "a b", "a\tb", "x" * 129):
        body = b'{"type":"UnloadModel"}'  # 409 while an SAE is attached
        lines = (f"Content-Length: {len(body)}", f"Idempotency-Key: {key}", "Connection: close")
        with connected(service) as raw:
            raw.sendall(head(COMMANDS, *lines) + body)
            assert parsed(to_the_end(raw)).status == 400, key
    for tag, status in (("a\r\nINJECTED: 1", 400), ("\ud800", 400), ("x" * 129, 400), ("caf\u00e9 \U0001f600", 200)):
        answer = service.client.post("/v1/completions", content=sent(prompt="a", max_tokens=1, sae={"tag": tag}),
                                     headers={"content-type": "application/json"})  # fmt: skip
        assert answer.status_code == status, (tag, answer.text)
    for path in ("/api/saes/%00", "/api/saes/%0d%0aINJECTED:%201", "/api/saes/%e9", "/api/saes/%ff%fe", "/api/saes/con",
                 "/api/commands/%0aINJECTED", "/api/generations/%F0%9F%98%80", "/v1/models/%0aINJECTED"):  # fmt: skip
        answer = service.client.get(path)
        assert answer.status_code in (400, 404), (path, answer.text)
        assert "INJECTED: 1" not in answer.headers
    assert "INJECTED" not in service.stderr.read_text()


CANARY = "the canary was read"


def test_row_41_paths_that_lead_elsewhere(service: Process, tmp_path: Path) -> None:
    data = service.stderr.parent / "data"
    outside = service.stderr.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "cfg.json").write_text(CANARY)
    (outside / "sae_weights.safetensors").write_text(CANARY)
    before = {path: path.stat().st_mtime_ns for path in sorted(outside.rglob("*"))}
    ways = ("../outside", "..\\outside", str(outside), "%2e%2e%2foutside", "a/../../outside", "./../outside",
            "..%2foutside", "file:///etc/passwd", "a//b", "/etc/passwd",
            "\\\\host\\share", "C:\\x")  # fmt: skip
    for way in ways:
        refused(service, 400, {"type": "Download", "repository_id": way})
        refused(service, 400, {"type": "Download", "repository_id": f"org/{way}"})
        refused(service, 400, {"type": "Download", "repository_id": "org/a", "revision": way})
        if "%" not in way:
            refused(service, 400, {"type": "Download", "repository_id": "org/a", "path": way})
        refused(service, 400, {"type": "Attach", "sae_id": way})
    link = tmp_path / "link"
    link.symlink_to(outside)
    for way in (str(outside), str(link), "../outside", "/", "/etc", str(data)):
        problem = refused(service, 403, {"type": "Import", "path": way})
        assert CANARY not in json.dumps(problem)
    for way in ("/../outside/cfg.json", "/..%2foutside/cfg.json", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd",
                "/page.js/../../config.py", "/page.js%2f..%2f..%2fconfig.py", "/..\\..\\config.py", "/page.js\x00.html",
                "/api/saes/..%2f..%2f..%2foutside", "/api/saes/%2e%2e%2f", 
                "/v1/models/..%2f..%2fetc%2fpasswd"):  # fmt: skip
        with connected(service) as raw:
            request = f"GET {way} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close"
            raw.sendall(request.encode("latin-1") + b"\r\n\r\n")
            answer = parsed(to_the_end(raw))
        assert answer.status in (400, 404), (way, answer)
        assert CANARY.encode() not in answer.body
        assert b"root:" not in answer.body
    assert before == {path: path.stat().st_mtime_ns for path in sorted(outside.rglob("*"))}
    assert not any(CANARY in path.read_text(errors="replace") for path in data.rglob("*.json"))


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
