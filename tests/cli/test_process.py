"""`serve` as a real process, and the offline commands on what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sae_actor.client import Client
from tests.children import child
from tests.cli.conftest import NOWHERE, Ran
from tests.fakes.hub_server import HubServer

Command = Callable[..., Ran]


@contextmanager
def serving(folder: Path, *argv: str) -> Iterator[str]:
    """A service on a free port; its address. Ended by SIGTERM, which must leave with 0."""
    command = [sys.executable, "-m", "sae_actor", "serve", "--port", "0", "--data-dir", str(folder), *argv]
    with child(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            with Client(url) as client:
                given_up = time.monotonic() + 100
                while not (status := client.status())["ready"]:
                    assert time.monotonic() < given_up, status
                    time.sleep(0.02)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(20)
    assert code == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data folder of a service that has lived once, without a model."""
    data = tmp_path / "data"
    with serving(data):
        pass
    return data


def test_the_log_while_a_service_runs_and_after(tmp_path: Path, command: Command) -> None:
    data = tmp_path / "data"
    with serving(data) as url:
        with Client(url) as client:
            live = client.state()
        for name in ("show", "verify", "state"):
            held = command("log", name, "--data-dir", str(data))
            assert held.code == 75
            assert "GET /api/log" in held.err
        second = command("serve", "--port", "0", "--data-dir", str(data))
        assert second.code == 75
    shown = [json.loads(line) for line in command("log", "show", "--data-dir", str(data), "--json").out.splitlines()]
    assert [event["type"] for event in shown] == ["ActorStarted", "ActorStopped"]
    assert [event["position"] for event in shown] == [1, 2]
    lines = command("log", "show", "--data-dir", str(data), "--after", "1").out.splitlines()
    assert len(lines) == 1
    assert "ActorStopped" in lines[0]
    assert command("log", "show", "--data-dir", str(data), "--types", "ActorStarted").out.count("\n") == 1
    assert command("log", "show", "--data-dir", str(data), "--types", "Nonsense").code == 64
    verified = command("log", "verify", "--data-dir", str(data))
    assert verified == (0, f"ok: 2 events, head 2 {shown[-1]['hash']}\n", "")
    assert json.loads(command("log", "verify", "--data-dir", str(data), "--json").out)["ok"] is True
    at_start = json.loads(command("log", "state", "--data-dir", str(data), "--json", "--at", str(live["position"])).out)
    assert at_start == live
    assert json.loads(command("log", "state", "--data-dir", str(data), "--json", "--at", "0").out)["position"] == 0
    assert command("log", "state", "--data-dir", str(data)).out.startswith("position    2\nmodel       none")
    past = command("log", "state", "--data-dir", str(data), "--at", "3")
    assert past == (64, "", "sae-actor: position 3 is past the head 2 (bad_request)\n")


def test_a_damaged_log(folder: Path, command: Command) -> None:
    with sqlite3.connect(folder / "events.db") as database:
        database.execute("PRAGMA writable_schema = ON")
        triggers = database.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            database.execute(f"DROP TRIGGER {name}")
        database.execute(
            "UPDATE events SET data = CAST(replace(CAST(data AS TEXT), '0.1.0', '0.1.1') AS BLOB) WHERE position = 1"
        )
        for _, sql in triggers:
            database.execute(sql)
    database.close()
    damaged = command("log", "verify", "--data-dir", str(folder))
    assert damaged.code == 65
    assert damaged.out.startswith("damaged at position 1: ")
    assert json.loads(command("log", "verify", "--data-dir", str(folder), "--json").out)["first_bad"] == 1
    assert command("log", "state", "--data-dir", str(folder)).code == 65
    assert command("log", "state", "--data-dir", str(folder), "--at", "0").code == 0
    assert command("log", "show", "--data-dir", str(folder)).code == 0
    assert command("serve", "--port", "0", "--data-dir", str(folder)).code == 65


def test_no_log(tmp_path: Path, command: Command) -> None:
    for name in ("show", "verify", "state"):
        ran = command("log", name, "--data-dir", str(tmp_path / "none"))
        assert ran.code == 78
        assert "none" in ran.err
    assert not (tmp_path / "none").exists()


def test_the_offline_commands_find_the_service_s_folder(
    folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_ACTOR_DATA_DIR", str(folder))
    assert command("log", "verify").code == 0
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("SAE_ACTOR_DATA_DIR")
    os.rename(folder, tmp_path / "sae-actor")
    assert command("log", "verify").code == 0


def test_the_demo_s_log_is_pointed_to(
    folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("SAE_ACTOR_URL", NOWHERE)
    demo = tmp_path / "sae-actor" / "demo"
    demo.parent.mkdir()
    os.rename(folder, demo)
    missing = command("log", "verify")
    assert missing.code == 78
    assert missing.err.endswith(f"--data-dir {demo}\n")
    assert command("log", "verify", "--data-dir", str(demo)).code == 0


def test_offline_needs_no_torch(folder: Path) -> None:
    told = (
        "import sys\nfrom sae_actor.cli import main\n"
        f"assert main(['log', 'verify', '--data-dir', {str(folder)!r}]) == 0\n"
        f"assert main(['log', 'state', '--data-dir', {str(folder)!r}]) == 0\n"
        "heavy = {'torch', 'transformers', 'litestar', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", told], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000")],
    ids=["by itself", "spins of one's own", "a policy of one's own"],
)
def test_threads_of_torch_leave_their_cores_to_others(given: dict[str, str], spins: str) -> None:
    program = (
        "import contextlib, sys\nfrom sae_actor.__main__ import main\nsys.argv[1:] = ['--version']\n"
        "with contextlib.suppress(SystemExit):\n    main()\nimport torch"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **given}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert f"GOMP_SPINCOUNT = '{spins}'" in ran.stderr, ran.stderr


def test_what_serve_refuses(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    exposed = command("serve", "--host", "0.0.0.0", "--port", "0", *data)
    assert exposed.code == 78
    assert "SAE_ACTOR_SERVER_TOKEN" in exposed.err
    assert command("demo", "--host", "::", "--port", "0", *data).code == 78
    (tmp_path / "own.toml").write_text("[server]\nprot = 1\n")
    unknown = command("serve", "--config", str(tmp_path / "own.toml"), *data)
    assert unknown.code == 78
    assert "server.prot" in unknown.err
    for port in ("99999", "-1", "80x"):
        assert command("serve", "--port", port, *data).code == 64
    assert "a whole number from 0 to 65535" in command("serve", "--port", "99999", *data).err
    assert command("serve", "--host", "two words", *data).code == 64
    monkeypatch.setenv("SAE_ACTOR_SERVER_PORT", "99999")
    assert command("serve", *data).code == 78
    monkeypatch.delenv("SAE_ACTOR_SERVER_PORT")
    assert command("serve", "--config", str(tmp_path / "none.toml"), *data).code == 78
    monkeypatch.setenv("SAE_ACTOR_ENGINE_THREADS", "many")
    assert "SAE_ACTOR_ENGINE_THREADS" in command("serve", "--port", "0", *data).err
    monkeypatch.delenv("SAE_ACTOR_ENGINE_THREADS")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        in_use = command("serve", "--port", str(port), *data)
    assert in_use.code == 69
    assert str(port) in in_use.err
    assert not (tmp_path / "data").exists()


def test_a_variable_that_sets_nothing_is_warned_of(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_ACTOR_PORT", "9999")
    warning = "SAE_ACTOR_PORT of the environment is not a setting; did you mean SAE_ACTOR_SERVER_PORT?"
    offline = command("log", "verify", "--data-dir", str(folder))
    assert (offline.code, offline.err) == (0, f"sae-actor: warning: {warning}\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        served = command("serve", "--port", str(taken.getsockname()[1]), "--data-dir", str(folder))
    assert (served.code, served.err.splitlines()[0]) == (69, f"sae-actor: warning: {warning}")


def test_settings_that_are_refused_are_said_in_their_own_form(tmp_path: Path) -> None:
    gone = tmp_path / "gone.pem"
    environment = {
        **os.environ,
        "SAE_ACTOR_SERVER_LOG_FORMAT": "json",
        "SAE_ACTOR_SERVER_TLS_CERTIFICATE": str(gone),
        "SAE_ACTOR_PORT": "9999",
    }
    command = [sys.executable, "-m", "sae_actor", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 78
    assert [json.loads(line)["message"] for line in ran.stderr.splitlines()] == [
        "warning: SAE_ACTOR_PORT of the environment is not a setting; did you mean SAE_ACTOR_SERVER_PORT?",
        f"server.tls_certificate: {gone}: No such file or directory",
    ]
    assert not (tmp_path / "data").exists()


def test_import_roots_that_are_not_there_are_warned_of(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_ACTOR_HUB_IMPORT_ROOTS", f"{folder}:{folder / 'gone'}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        served = command("serve", "--port", str(taken.getsockname()[1]), "--data-dir", str(folder))
    assert served.err.splitlines()[0] == (
        f"sae-actor: warning: hub.import_roots: there is no folder {folder / 'gone'}; imports from it are refused"
    )


@pytest.mark.parametrize("name", ["gone", "empty", "model.safetensors", "gone/deeper/still"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_path_without_a_model_is_refused_before_it_listens(
    name: str, relative: bool, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    model = f"./{name}" if relative else str(tmp_path / name)
    with socket.create_server(("127.0.0.1", 0)) as taken:  # a port in use would be 69: it is not asked for
        port = str(taken.getsockname()[1])
        refused = command("serve", "--port", port, "--data-dir", str(tmp_path / "data"), "--model", model)
    assert (refused.code, refused.out) == (78, "")
    assert str(tmp_path / name) in refused.err
    assert {"empty": "is not a model", "model.safetensors": "is not a folder"}.get(name, "no folder") in refused.err
    assert not (tmp_path / "data").exists()


def test_the_settings_are_held_to_it_too(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("SAE_ACTOR_MODEL_ID", "~nobody-of-that-name/model")
    refused = command("serve", "--port", "0", "--data-dir", str(tmp_path / "data"))
    assert refused.code == 78
    assert "model.id: there is no folder " in refused.err
    with serving(folder, "--read-only"):  # loads none
        pass


def test_what_may_be_an_id_is_asked_of_the_hub(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        with serving(tmp_path / "data", "--model", "models/nope"):
            assert server.asked("info")
    assert capfd.readouterr().err.count("the hub has no models/nope at main") == 1


def test_read_only(folder: Path, command: Command) -> None:
    before = command("log", "show", "--data-dir", str(folder))
    with serving(folder, "--read-only") as url:
        assert command("status", "--url", url).out.startswith("read_only\n")
    assert command("log", "show", "--data-dir", str(folder)) == before


def test_a_loss_that_is_none_is_not_accepted(folder: Path, tmp_path: Path, command: Command) -> None:
    intact = command("serve", "--port", "0", "--accept-truncation", "100", "--data-dir", str(folder))
    assert intact.code == 78
    assert f"the log in {folder} ends at event 2, and no event is lost" in intact.err
    other = command("serve", "--port", "0", "--accept-truncation", "2", "--data-dir", str(tmp_path / "other"))
    assert other.code == 78
    assert f"there is no log in {tmp_path / 'other'}" in other.err
    assert not (tmp_path / "other").exists()


def test_a_lost_tail_is_refused_until_it_is_accepted(folder: Path, command: Command) -> None:
    whole = (folder / "events.db").read_bytes()
    with serving(folder):
        pass
    (folder / "events.db").write_bytes(whole)
    refused = command("serve", "--port", "0", "--data-dir", str(folder))
    assert refused.code == 65
    flag = refused.err[refused.err.index("--accept-truncation") :].split()[:2]
    with serving(folder, flag[0], flag[1].rstrip(".")) as url, Client(url) as client:
        assert "LogTruncated" in [event["type"] for event in client.log()["events"]]
