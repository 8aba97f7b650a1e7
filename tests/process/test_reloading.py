"""SIGHUP: tokens, certificate and log level are read again while the service runs."""

from __future__ import annotations

import hashlib
import signal
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from .harness import Process, until
from .test_network_access import needs_openssl

ALICE, BOB = "alice's-token", "bob's-token"


def line(name: str, role: str, token: str) -> str:
    return f"{name} {role} {hashlib.sha256(token.encode()).hexdigest()}\n"


def tokens(file: Path, *lines: str) -> None:
    file.touch(mode=0o600)
    file.write_text("".join(lines))


def asked(process: Process, token: str) -> int:
    return httpx.get(f"{process.url}/api/state", headers={"Authorization": f"Bearer {token}"}).status_code


def reloads(process: Process, token: str) -> list[dict[str, object]]:
    query = {"types": "SettingsReloaded"}
    found = httpx.get(f"{process.url}/api/log", params=query, headers={"Authorization": f"Bearer {token}"}).json()
    return [event["data"] for event in found["events"]]


def test_a_token_is_withdrawn_and_another_given(tmp_path: Path) -> None:
    """The stream, the login and the requests of the one end; those of the other go on."""
    file = tmp_path / "tokens"
    tokens(file, line("alice", "operator", ALICE), line("bob", "viewer", BOB))
    environment = {"SAE_ACTOR_SERVER_TOKENS_FILE": str(file)}
    with (
        Process(tmp_path / "data", environment=environment) as process,
        httpx.Client(base_url=process.url, headers={"Origin": process.url}) as page,
        httpx.Client(base_url=process.url) as bare,
        ThreadPoolExecutor(3) as clients,
    ):
        assert page.post("/login", json={"token": BOB}).status_code < 300
        follows = threading.Barrier(4)

        def follow(client: httpx.Client, token: str | None) -> str:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            with client.stream("GET", "/api/events", headers=headers, timeout=60) as stream:
                follows.wait(30)
                return "".join(stream.iter_text())

        bobs = clients.submit(follow, bare, BOB)
        logged_in = clients.submit(follow, page, None)
        alices = clients.submit(follow, bare, ALICE)
        follows.wait(30)

        tokens(file, line("alice", "operator", ALICE), line("carol", "viewer", "carol's"))
        process.signal(signal.SIGHUP)
        assert "event: bye" not in bobs.result(60)
        assert "event: bye" not in logged_in.result(60)
        assert (asked(process, BOB), asked(process, "carol's"), asked(process, ALICE)) == (401, 200, 200)
        assert page.get("/api/state").status_code == 401
        until(lambda: reloads(process, ALICE) != [])
        assert reloads(process, ALICE) == [
            {
                "tokens_added": ["carol"],
                "tokens_removed": ["bob"],
                "tokens_changed": [],
                "certificate_sha256": None,
                "log_level": "warning",
                "needs_restart": [],
            }
        ]
        process.signal(signal.SIGTERM)
        assert "event: bye" in alices.result(60), "it was never interrupted"
        assert "event: SettingsReloaded" in alices.result()
        assert process.wait(10) == 0
    assert process.stderr.read_text() == ""


def test_what_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    tokens(file, line("alice", "operator", ALICE))
    with Process(tmp_path / "data", environment={"SAE_ACTOR_SERVER_TOKENS_FILE": str(file)}) as process:
        tokens(file, "alice operator not-a-digest\n")
        process.signal(signal.SIGHUP)
        until(lambda: "the settings in force stay" in process.stderr.read_text())
        assert "64 hex digits" in process.stderr.read_text()
        assert asked(process, ALICE) == 200
        assert reloads(process, ALICE) == []


def test_the_log_level_and_what_waits_for_a_restart(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[server]\nmax_readers = 7\n")
    with Process(tmp_path / "data", environment={"SAE_ACTOR_CONFIG": str(config)}) as process:
        config.write_text('[server]\nmax_readers = 8\nlog_level = "info"\n')
        process.signal(signal.SIGHUP)
        until(lambda: reloads(process, "none") != [])
        assert reloads(process, "none")[0]["log_level"] == "info"
        assert reloads(process, "none")[0]["needs_restart"] == ["server.max_readers"]
        process.client.get("/api/state")
        until(lambda: "/api/state" in process.stderr.read_text())
    assert "server.max_readers has changed, and is in force after a restart" in process.stderr.read_text()


@needs_openssl
def test_the_next_connection_gets_the_new_certificate(tmp_path: Path) -> None:
    both = tmp_path / "both.pem"

    def certify() -> None:
        """A certificate of this machine, with its key."""
        made = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "certificate.pem")]
        of = ["-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
        subprocess.run(["openssl", "req", "-x509", *of, *made], check=True, capture_output=True)
        both.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "certificate.pem").read_bytes())

    certify()
    with Process(tmp_path / "data", environment={"SAE_ACTOR_SERVER_TLS_CERTIFICATE": str(both)}) as process:
        port = int(process.url.rpartition(":")[2])
        first = ssl.get_server_certificate(("127.0.0.1", port))
        certify()
        process.signal(signal.SIGHUP)
        until(lambda: ssl.get_server_certificate(("127.0.0.1", port)) != first)
        assert ssl.get_server_certificate(("127.0.0.1", port)) in both.read_text()
        query = {"types": "SettingsReloaded"}
        until(lambda: process.client.get("/api/log", params=query).json()["events"] != [])
        told = process.client.get("/api/log", params=query).json()["events"][0]["data"]
        assert told["certificate_sha256"] == hashlib.sha256(both.read_bytes()).hexdigest()
