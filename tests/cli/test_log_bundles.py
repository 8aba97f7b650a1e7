"""`log export`, `log import`, `log redact` on real files: what they print, and with what they leave."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sae_actor.eventlog import SqliteLog
from tests.cli.conftest import NOWHERE, Ran
from tests.cli.logs import a_life, write

Command = Callable[..., Ran]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write(tmp_path / "log", a_life())
    return tmp_path / "log"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The log held by a writer, as a running service holds it."""
    with asyncio.Runner() as runner:
        opened = runner.run(SqliteLog.open(folder))
        try:
            yield
        finally:
            runner.run(opened.close())


def shown(folder: Path, command: Command) -> str:
    ran = command("log", "show", "--data-dir", str(folder), "--json")
    assert ran.code == 0
    return ran.out


@pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
def test_an_export_is_imported_to_the_same_log(name: str, log: Path, tmp_path: Path, command: Command) -> None:
    there, back = tmp_path / name, tmp_path / "back"
    exported = command("log", "export", str(there), "--data-dir", str(log))
    assert exported.code == 0
    assert exported.out.startswith(f"13 events exported to {there}\n")
    imported = command("log", "import", str(there), "--data-dir", str(back))
    assert imported.code == 0
    assert imported.out.startswith(f"13 events imported into {back}, head 13 ")
    assert shown(back, command) == shown(log, command)
    verified = command("log", "verify", "--data-dir", str(back))
    assert verified.out == command("log", "verify", "--data-dir", str(log)).out


def test_the_printed_line_verifies_the_export(log: Path, tmp_path: Path, command: Command) -> None:
    line = command("log", "export", str(tmp_path / "bundle"), "--data-dir", str(log)).out.splitlines()[1]
    told = line.split("python ")[1].split()
    bare = subprocess.run([sys.executable, "-I", *told], cwd=tmp_path / "bundle", capture_output=True, check=False)
    assert bare.returncode == 0
    told[-1] = f"13:{'0' * 64}"
    bare = subprocess.run([sys.executable, "-I", *told], cwd=tmp_path / "bundle", capture_output=True, check=False)
    assert bare.returncode == 65


def test_json(log: Path, tmp_path: Path, command: Command) -> None:
    head = json.loads(command("log", "verify", "--data-dir", str(log), "--json").out)["head"]
    there, back = tmp_path / "bundle", tmp_path / "back"
    answer = json.loads(command("log", "export", str(there), "--data-dir", str(log), "--json").out)
    assert answer == {"to": str(there), "events": 13, "head": head}
    answer = json.loads(command("log", "import", str(there), "--data-dir", str(back), "--json").out)
    assert answer == {"data_dir": str(back), "events": 13, "head": head}
    event = json.loads(command("log", "redact", "9", "--why", "asked for", "--data-dir", str(back), "--json").out)
    assert (event["position"], event["type"], event["principal"]) == (14, "PayloadRedacted", "local")
    assert event["data"] == {"redacted_position": 9, "why": "asked for"}


def test_nothing_is_overwritten(log: Path, tmp_path: Path, command: Command) -> None:
    there = str(tmp_path / "bundle")
    assert command("log", "export", there, "--data-dir", str(log)).code == 0
    again = command("log", "export", there, "--data-dir", str(log))
    assert again.code == 64
    assert "overwrites nothing" in again.err
    before = shown(log, command)
    onto = command("log", "import", there, "--data-dir", str(log))
    assert onto.code == 78
    assert "overwrites nothing" in onto.err
    assert shown(log, command) == before


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_name_that_is_no_text(flags: tuple[str, ...], log: Path, tmp_path: Path, command: Command) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    assert command("log", "export", odd, "--data-dir", str(log), *flags).code == 0
    assert command("log", "import", odd, "--data-dir", odd + "2", *flags).code == 0
    assert Path(odd, "events.ndjson").is_file()


def test_a_changed_export_is_refused(log: Path, tmp_path: Path, command: Command) -> None:
    assert command("log", "export", str(tmp_path / "bundle"), "--data-dir", str(log)).code == 0
    events = tmp_path / "bundle" / "events.ndjson"
    events.write_bytes(events.read_bytes().replace(b'"strength":7.5', b'"strength":7.4', 1))
    damaged = command("log", "import", str(tmp_path / "bundle"), "--data-dir", str(tmp_path / "back"))
    assert damaged.code == 65
    assert "event 8: " in damaged.err
    assert command("log", "verify", "--data-dir", str(tmp_path / "back")).code == 78
    assert not (tmp_path / "back").exists()
    (tmp_path / "back").mkdir()
    assert command("log", "import", str(tmp_path / "bundle"), "--data-dir", str(tmp_path / "back")) == damaged
    assert list((tmp_path / "back").iterdir()) == []
    nothing = command("log", "import", str(tmp_path / "none"), "--data-dir", str(tmp_path / "back"))
    assert (nothing.code, nothing.err) == (64, f"sae-actor: there is no {tmp_path / 'none'} (not_found)\n")
    (tmp_path / "text").write_text("x")
    for other in (tmp_path / "text", tmp_path):
        odd = command("log", "import", str(other), "--data-dir", str(tmp_path / "back"))
        assert odd.code == 65
        assert f"{other} is not an export of a log: " in odd.err


def test_without_a_log(tmp_path: Path, command: Command) -> None:
    none = ("--data-dir", str(tmp_path / "none"))
    assert command("log", "export", str(tmp_path / "bundle"), *none).code == 78
    assert command("log", "redact", "1", "--why", "w", *none).code == 78
    assert list(tmp_path.iterdir()) == []


def test_while_a_service_runs(log: Path, tmp_path: Path, command: Command) -> None:
    assert command("log", "export", str(tmp_path / "bundle"), "--data-dir", str(log)).code == 0
    with held(log):
        for argv in (
            ("export", str(tmp_path / "other")),
            ("import", str(tmp_path / "bundle")),
            ("redact", "9", "--why", "asked for"),
        ):
            refused = command("log", *argv, "--data-dir", str(log))
            assert refused.code == 75
            assert "GET /api/log" in refused.err
    assert not (tmp_path / "other").exists()


def test_an_import_into_the_service_s_folder_beside_the_demo_s(
    log: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the demo left a log, `log show` points to it; an import makes the log that was asked for."""
    assert command("log", "export", str(tmp_path / "bundle"), "--data-dir", str(log)).code == 0
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAE_ACTOR_URL", NOWHERE)
    write(tmp_path / "home" / "sae-actor" / "demo", a_life())
    assert command("log", "show").code == 78
    assert command("log", "import", str(tmp_path / "bundle")).code == 0
    assert command("log", "show").code == 0


def test_redaction(log: Path, command: Command) -> None:
    at = ("--data-dir", str(log))
    erased = command("log", "redact", "9", "--why", "the tag names a person", *at)
    assert erased == (0, "the payload of event 9 is erased   [position 14]\n", "")
    assert command("log", "verify", *at).code == 0
    events = [json.loads(line) for line in shown(log, command).splitlines()]
    assert events[8]["data"] is None
    assert events[13]["data"]["why"] == "the tag names a person"
    for position, why in (("9", "already erased"), ("8", "depends on"), ("0", "no event 0"), ("99", "no event 99"),
                          ("13", "first")):  # fmt: skip
        refused = command("log", "redact", position, "--why", "w", *at)
        assert refused.code == 64
        assert why in refused.err
    assert len(shown(log, command).splitlines()) == 14


@pytest.mark.parametrize(
    "argv",
    [
        ("redact", "9"),
        ("redact", "9", "--why", " "),
        ("redact", "9", "--why", "\udcff"),
        ("redact", "nine", "--why", "w"),
        ("redact", "--why", "w"),
        ("export",),
        ("export", "bundle.tar.gz"),
        ("export", "bundle.ZIP"),
        ("import",),
        ("import", "one", "two"),
    ],
)
def test_wrong_usage(argv: tuple[str, ...], log: Path, command: Command) -> None:
    refused = command("log", *argv, "--data-dir", str(log))
    assert refused.code == 64
    assert refused.err
    assert len(shown(log, command).splitlines()) == 13
