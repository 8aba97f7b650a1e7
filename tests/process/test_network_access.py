"""Rows 70, 71 and 74, and HTTPS: who reaches a real service process, and under which address.

row  test
70   test_row_70_strangers_on_every_route
71   test_row_71_tokens_on_every_route (and tests/api/guard/test_guard.py, which has the whole list of both)
74   test_row_74_… (a port in use: tests/process/test_kill.py)
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sae_actor.api.operations import OPERATIONS
from sae_actor.client import Client
from sae_actor.config import ConfigurationError, load, tls_files
from tests.api.raw import exchange, parsed, request

from .harness import Process
from .network import to_the_end, whole
from .test_kill import SCRIPT

OPERATOR, VIEWER = "canary-operator-9d2c41", "canary-viewer-77ab03"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl binary to make a certificate")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """With a file of tokens. Nothing of them may be in any output."""
    folder = tmp_path_factory.mktemp("access")
    tokens = folder / "tokens"
    tokens.write_text("".join(
        f"{name} {role} {hashlib.sha256(token.encode()).hexdigest()}\n"
        for name, role, token in (("olga", "operator", OPERATOR), ("vera", "viewer", VIEWER))
    ))  # fmt: skip
    tokens.chmod(0o600)
    with Process(folder / "data", environment={"SAE_ACTOR_SERVER_TOKENS_FILE": str(tokens)}) as process:
        process.client.headers["authorization"] = f"Bearer {OPERATOR}"
        yield process
        whole(process)
        for path in (folder / "data").rglob("*"):
            if path.is_file():
                assert not any(token.encode() in path.read_bytes() for token in (OPERATOR, VIEWER)), path


def statuses(service: Process, headers: list[tuple[str, str]], query: str = "") -> dict[tuple[str, str], int]:
    """Route → status of its answer to these headers."""

    async def all_of_them() -> dict[tuple[str, str], int]:
        found = {}
        for each in OPERATIONS:
            path = re.sub(r"{\w+}", "x", each.path) + query
            found[each.method, each.path] = (await exchange(service.url, request(each.method, path, headers))).status
        return found

    return asyncio.run(all_of_them())


def test_row_70_strangers_on_every_route(service: Process) -> None:
    host, own = ("Host", service.url.removeprefix("http://")), ("Authorization", f"Bearer {OPERATOR}")
    for headers, status in (
        ([("Host", "evil.example")], 403), ([], 400), ([host, host], 400), ([host, ("Origin", "null")], 403),
        ([host, ("Origin", "https://evil.example")], 403), ([host, ("Sec-Fetch-Site", "cross-site")], 403),
    ):  # fmt: skip
        assert set(statuses(service, [*headers, own]).values()) == {status}, headers
    assert [event["type"] for event in service.events()] == ["ActorStarted"]


def test_row_71_tokens_on_every_route(service: Process) -> None:
    host = ("Host", service.url.removeprefix("http://"))
    is_open = {(each.method, each.path) for each in OPERATIONS if each.open}
    for given in (None, "Bearer wrong", f"Bearer {OPERATOR}x", "Bearer " + "x" * 10_000, f"Basic {OPERATOR}"):
        headers = [host] if given is None else [host, ("Authorization", given)]
        found = statuses(service, headers)
        assert {status for route, status in found.items() if route not in is_open} == {401}, given
    assert set(statuses(service, [host], f"?token={OPERATOR}").values()) == {400}
    found = statuses(service, [host, ("Authorization", f"Bearer {VIEWER}")])
    may_read = {(each.method, each.path) for each in OPERATIONS if each.reads or each.method == "GET"}
    assert {status for route, status in found.items() if route not in may_read | is_open} == {403}
    assert 403 not in {status for route, status in found.items() if route in may_read}
    answer = httpx.get(f"{service.url}/api/saes")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_the_name_of_the_token_is_in_the_log(service: Process) -> None:
    outcome = service.send("named", **SCRIPT[0][1])
    assert {event["principal"] for event in outcome["events"] if event["type"] == "ModelLoadRequested"} == {"olga"}
    before = service.events()
    seen = httpx.post(f"{service.url}/api/commands", json=SCRIPT[0][1], headers={"authorization": f"Bearer {VIEWER}"})
    assert (seen.status_code, seen.json()["code"]) == (403, "forbidden")
    text = httpx.post(f"{service.url}/v1/completions", json={}, headers={"authorization": f"Bearer {VIEWER}"})
    assert (text.status_code, text.json()["error"]["type"]) == (403, "permission_error")
    assert service.events() == before


# — where it listens —


def refuses(tmp_path: Path, **settings: str) -> str:
    """What a service says that does not start, and has not touched anything."""
    data = tmp_path / "data"
    environment = {f"SAE_ACTOR_SERVER_{name.upper()}": value for name, value in settings.items()}
    with Process(data, environment=environment) as process:
        assert process.wait() == 78
        assert process.url == ""
    assert not data.exists()
    return process.stderr.read_text()


def test_row_74_an_open_address_without_a_token(tmp_path: Path) -> None:
    assert "no token is set" in refuses(tmp_path, host="0.0.0.0")


def test_row_74_tokens_that_others_can_read(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"olga operator {'0' * 64}")
    tokens.chmod(0o644)
    assert "chmod 600" in refuses(tmp_path, host="0.0.0.0", tokens_file=str(tokens))


def test_row_74_an_open_address_with_a_token(tmp_path: Path) -> None:
    """Any host name then, unless some are named; the token is asked for in any case."""
    environment = {"SAE_ACTOR_SERVER_HOST": "0.0.0.0", "SAE_ACTOR_SERVER_TOKEN": OPERATOR}
    for hosts, status in (("", 200), ("sae.example", 403)):
        with Process(tmp_path / "data", environment={**environment, "SAE_ACTOR_SERVER_HOSTS": hosts}) as process:
            url = f"http://127.0.0.1:{process.url.rpartition(':')[2]}"
            headers = {"host": "other.example", "authorization": f"Bearer {OPERATOR}"}
            assert httpx.get(f"{url}/api/saes", headers=headers).status_code == status
            assert httpx.get(f"{url}/api/saes", headers={**headers, "host": "127.0.0.1"}).status_code == 200
            assert httpx.get(f"{url}/api/saes").status_code == 401


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_row_74_ipv6_alone(tmp_path: Path) -> None:
    with Process(tmp_path / "data", environment={"SAE_ACTOR_SERVER_HOST": "::1"}) as process:
        assert process.url.startswith("http://[::1]:")
        assert process.client.get("/health").status_code == 200
        assert process.client.get("/health", headers={"host": "evil.example"}).status_code == 403
        origin = {"origin": process.url}
        assert process.client.post("/api/saes/x/detach", headers=origin).status_code == 404
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(process.url.rpartition(":")[2])), timeout=5)


def test_row_74_an_address_of_another_machine(tmp_path: Path) -> None:
    with Process(
        tmp_path / "data", environment={"SAE_ACTOR_SERVER_HOST": "192.0.2.1", "SAE_ACTOR_SERVER_TOKEN": "x"}
    ) as one:
        assert one.wait() == 69
    assert "cannot listen on 192.0.2.1" in one.stderr.read_text()
    assert not (tmp_path / "data").exists()


# — HTTPS —


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Self-signed, for this machine alone."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=sae-actor test", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@needs_openssl
def test_https(tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "SAE_ACTOR_SERVER_TOKEN": OPERATOR,
        "SAE_ACTOR_SERVER_TLS_CERTIFICATE": str(certificate[0]),
        "SAE_ACTOR_SERVER_TLS_KEY": str(certificate[1]),
        "SAE_ACTOR_SERVER_REQUEST_SECONDS": "1",
        "SAE_ACTOR_SERVER_STALLED_SECONDS": "1",
    }
    with Process(tmp_path / "data", environment=environment) as process:
        assert process.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(certificate[0]))
        with httpx.Client(base_url=process.url, verify=trusting, headers={"origin": process.url}) as client:
            assert client.get("/health").status_code == 200
            login = client.post("/login", json={"token": OPERATOR})
            (cookie,) = login.headers.get_list("set-cookie")
            assert cookie.startswith("__Host-sae_actor_")
            assert "; Secure" in cookie
            assert client.post("/api/saes/x/detach").status_code == 404
            with client.stream("GET", "/api/events") as events:
                assert next(line for line in events.iter_lines() if line.startswith("event:")) == "event: ActorStarted"
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            httpx.get(process.url)
        port = int(process.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b"200 OK" not in to_the_end(plain)
        for said in (b"", b"\x16\x03\x01\x02\x00\x01"):  # no handshake, and a part of one
            with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
                began = time.monotonic()
                silent.sendall(said)
                to_the_end(silent)
                assert 0.9 < time.monotonic() - began < 3
        with trusting.wrap_socket(
            socket.create_connection(("127.0.0.1", port), timeout=10), server_hostname="127.0.0.1"
        ) as slow:
            slow.sendall(b"POST /api/commands HTTP/1.1\r\nHost: 127")
            assert parsed(to_the_end(slow)).status == 408
        stopped = socket.socket()
        stopped.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stopped.connect(("127.0.0.1", port))
        with trusting.wrap_socket(stopped, server_hostname="127.0.0.1") as stopped:
            asked = (
                f"GET /schema HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {OPERATOR}\r\n\r\n".encode()
            )
            stopped.sendall(asked * 100)
            time.sleep(4)
            with contextlib.suppress(ssl.SSLError):
                assert to_the_end(stopped).count(b"HTTP/1.1 200") < 100
        whole_over_tls(process)
        assert process.stderr.read_text() == ""


def whole_over_tls(process: Process) -> None:
    process.client.headers["authorization"] = f"Bearer {OPERATOR}"
    assert process.client.get("/api/log/verify").json()["ok"]


@needs_openssl
def test_https_that_cannot_be(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    other = tmp_path / "other.pem"
    other.write_text("no certificate")
    locked = tmp_path / "locked.pem"
    subprocess.run(["openssl", "pkcs8", "-topk8", "-in", certificate[1], "-out", locked, "-passout", "pass:secret"],
                   check=True, capture_output=True)  # fmt: skip
    for settings in (
        {"tls_certificate": str(certificate[0])},
        {"tls_certificate": str(certificate[0]), "tls_key": str(other)},
        {"tls_certificate": str(tmp_path / "gone"), "tls_key": str(certificate[1])},
        {"tls_certificate": str(certificate[0]), "tls_key": str(locked)},
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=r"server\.tls_"):
            tls_files(load({f"server.{name}": value for name, value in settings.items()}, environment={}))
    assert "server.tls_key" in refuses(tmp_path, tls_key=str(certificate[1]))
    gone = tmp_path / "gone"
    for key in ("tls_certificate", "tls_key"):
        files = {"tls_certificate": str(certificate[0]), "tls_key": str(certificate[1]), key: str(gone)}
        assert f"server.{key}: {gone}: No such file or directory\n" in refuses(tmp_path, **files)


@needs_openssl
def test_the_client_over_https(tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It trusts what the environment says it may."""
    both = tmp_path / "both.pem"
    both.write_text(certificate[1].read_text() + certificate[0].read_text())
    with Process(tmp_path / "data", environment={"SAE_ACTOR_SERVER_TLS_CERTIFICATE": str(both)}) as process:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        with Client(process.url) as client:
            assert client.list()["saes"] == []
        assert (
            json.loads(httpx.get(f"{process.url}/health", verify=ssl.create_default_context()).text)["status"] == "ok"
        )
