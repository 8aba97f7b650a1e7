"""Damage as an auditor meets it: `log verify` leaves with 65 and names the first bad position, whichever file it is in.

The bytes, tails and orders by the thousand are in tests/eventlog; here are the commands, and one process whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Ran
from tests.eventlog.making import REPOSITORY, content, make_killed_log, make_log
from tests.eventlog.test_tampering import change_byte

Command = Callable[..., Ran]
COUNT = 30


@pytest.fixture
def log(tmp_path: Path) -> Path:
    asyncio.run(make_log(tmp_path / "log", COUNT))
    return tmp_path / "log"


def first_bad(command: Command, folder: Path) -> int:
    """What `log verify` says, with 65, in words and as JSON; nothing is modified by it."""
    before = content(folder)
    said = command("log", "verify", "--data-dir", str(folder))
    told = command("log", "verify", "--json", "--data-dir", str(folder))
    assert (said.code, told.code) == (65, 65)
    answer = json.loads(told.out)
    assert not answer["ok"]
    assert said.out.startswith(f"damaged at position {answer['first_bad']}: ")
    assert content(folder) == before
    return int(answer["first_bad"])


def test_row_17_a_truncated_database(log: Path, command: Command) -> None:
    os.truncate(log / "events.db", (log / "events.db").stat().st_size - 4096)
    assert 1 <= first_bad(command, log) <= COUNT


def test_row_17_a_bad_header(log: Path, command: Command) -> None:
    change_byte(log / "events.db", 3, 0xFF)
    assert first_bad(command, log) == 1


def test_row_17_a_bit_of_a_payload(log: Path, command: Command) -> None:
    change_byte(log / "events.db", (log / "events.db").read_bytes().index(b'"reason":"r16"') + 12, 1)
    assert first_bad(command, log) == 17


def test_row_17_a_row_edited_by_the_sqlite3_program(log: Path, command: Command) -> None:
    edit = """
        PRAGMA writable_schema = ON;
        CREATE TEMP TABLE kept AS SELECT sql FROM sqlite_schema WHERE name = 'events_are_final';
        DROP TRIGGER events_are_final;
        UPDATE events SET principal = 'root' WHERE position = 9;
    """
    (trigger,) = rows(log, "SELECT sql FROM sqlite_schema WHERE name = 'events_are_final'")[0]
    script = f"{edit}{trigger};"
    if shutil.which("sqlite3") is not None:
        subprocess.run(["sqlite3", str(log / "events.db")], input=script, text=True, check=True)
    else:
        code = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.stdin.read())"
        subprocess.run([sys.executable, "-c", code, str(log / "events.db")], input=script, text=True, check=True)
    assert rows(log, "SELECT principal FROM events WHERE position = 9") == [("root",)]
    assert first_bad(command, log) == 9


def test_a_trigger_that_is_gone_is_no_event_s_damage(log: Path, command: Command) -> None:
    rows(log, "DROP TRIGGER events_are_final")
    said = command("log", "verify", "--data-dir", str(log))
    lost = "events.db: the trigger events_are_final is gone; the events themselves verify, up to 30"
    assert said == (65, f"damaged: {lost}\n", "")
    assert "first_bad" not in json.loads(command("log", "verify", "--json", "--data-dir", str(log)).out)
    served = command("serve", "--port", "0", "--data-dir", str(log))
    assert (served.code, served.err) == (65, f"sae-actor: {lost}. Nothing was changed\n")


def test_show_warns_of_damage(log: Path, command: Command) -> None:
    sound = command("log", "show", "--data-dir", str(log))
    assert (sound.code, sound.err) == (0, "")
    rows(log, "DROP TRIGGER events_are_final")
    shown = command("log", "show", "--data-dir", str(log))
    assert (shown.code, shown.out) == (0, sound.out)
    assert shown.err.startswith("sae-actor: warning: this log is damaged: events.db: the trigger events_are_final")
    change_byte(log / "events.db", (log / "events.db").read_bytes().index(b'"reason":"r16"') + 12, 1)
    assert command("log", "show", "--data-dir", str(log)).err.startswith(
        "sae-actor: warning: this log is damaged at position 17: event 17: "
    )


def rows(log: Path, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(log / "events.db") as database:
        found = database.execute(query).fetchall()
    database.close()
    return found


def test_row_16_a_tail_that_was_in_the_wal(tmp_path: Path, command: Command) -> None:
    asyncio.run(make_killed_log(tmp_path / "log", COUNT))
    wal = tmp_path / "log" / "events.db-wal"
    whole = wal.read_bytes()
    for left in (0, len(whole) // 2, len(whole) - 1):
        wal.write_bytes(whole[:left])
        assert 1 <= first_bad(command, tmp_path / "log") <= COUNT
    wal.unlink()
    assert first_bad(command, tmp_path / "log") == 1
    wal.write_bytes(whole)
    assert command("log", "verify", "--data-dir", str(tmp_path / "log")).code == 0


@pytest.mark.parametrize("name", ["events.db", "events.db-wal", "events.ndjson"])
def test_a_process_of_its_own_leaves_with_65(tmp_path: Path, name: str) -> None:
    """The exit code as a shell sees it, for bytes that chance picks from the payloads of each kind of file."""
    folder = tmp_path / "log"
    asyncio.run((make_killed_log if name == "events.db-wal" else make_log)(folder, COUNT))
    program = [sys.executable, "-m", "sae_actor", "log"]
    verify = [*program, "verify", "--data-dir", str(folder)]
    if name == "events.ndjson":
        subprocess.run([*program, "export", "--data-dir", str(folder), str(tmp_path / "bundle")], cwd=REPOSITORY,
                       check=True, capture_output=True)  # fmt: skip
        folder = tmp_path / "bundle"
        verify = [sys.executable, "-I", "-S", str(folder / "verify.py")]
    whole = (folder / name).read_bytes()
    chance = random.Random(name)
    for position in chance.sample(range(1, COUNT + 1), 2):
        # Of a page that was written twice the WAL holds an older copy, which counts for nothing.
        at = whole.rindex(f'"reason":"r{position - 1}"'.encode()) + chance.randrange(9)
        change_byte(folder / name, at, 1 << chance.randrange(8))
        answer = subprocess.run(verify, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert answer.returncode == 65, answer.stdout
        if name != "events.db-wal":  # a frame that does not verify takes all events of its transaction along
            assert f"{position}: " in answer.stdout
        (folder / name).write_bytes(whole)
