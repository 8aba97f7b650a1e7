"""Damage as an auditor meets it: `log verify` leaves with 65 and names the first bad position, whichever file it is in.

The bytes, tails and orders by the thousand are in tests/eventlog; here are the commands, and one process whole.
"""

from __future__ import annotations

import asyncio
import contextlib
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

from sae_actor.eventlog import SqliteLog, events_of
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


# — a copy without head.checkpoint —


@pytest.fixture
def copy(tmp_path: Path, log: Path) -> tuple[Path, list[str]]:
    """Of the database alone, whose tail was in the WAL that was not copied; and the heads of the whole log."""
    whole = asyncio.run(_hashes(log))
    cut_rows(log, 20, tmp_path / "copy")
    return tmp_path / "copy", whole


async def _hashes(folder: Path) -> list[str]:
    return [f"{event.position}:{event.hash}" async for event in events_of(folder)]


def cut_rows(log: Path, keep: int, to: Path) -> None:
    """What a copy holds that was made before the rest reached the database."""
    to.mkdir()
    shutil.copy(log / "events.db", to / "events.db")
    with contextlib.closing(sqlite3.connect(to / "events.db")) as db:
        triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        db.execute("DELETE FROM events WHERE position > ?", (keep,))
        for _, sql in triggers:
            db.execute(sql)
        db.commit()
        db.execute("PRAGMA journal_mode = DELETE")


def test_row_78_a_copy_without_its_checkpoint_is_unproven(copy: tuple[Path, list[str]], command: Command) -> None:
    folder, _ = copy
    before = content(folder)
    said = command("log", "verify", "--data-dir", str(folder))
    assert said.code == 65
    assert said.out.startswith("unproven: 20 events verify, head 20 ")
    assert "there is no head.checkpoint" in said.out
    assert "--head POSITION:HASH" in said.out
    told = command("log", "verify", "--json", "--data-dir", str(folder))
    answer = json.loads(told.out)
    assert (told.code, answer["ok"], answer["unproven"], answer["events"]) == (65, False, True, 20)
    assert "first_bad" not in answer
    assert content(folder) == before


def test_row_78_a_head_that_was_noted_proves_it(copy: tuple[Path, list[str]], command: Command) -> None:
    folder, heads = copy
    for noted in ([heads[19]], [heads[6]], [heads[6], heads[19].upper()]):
        flags = [flag for head in noted for flag in ("--head", head)]
        proven = command("log", "verify", "--data-dir", str(folder), *flags)
        assert (proven.code, proven.out) == (0, f"ok: 20 events, head {heads[19].replace(':', ' ')}\n")
    lost = command("log", "verify", "--json", "--data-dir", str(folder), "--head", heads[29])
    assert lost.code == 65
    answer = json.loads(lost.out)
    assert (answer["ok"], answer["first_bad"], answer["events"]) == (False, 21, 20)
    assert "an event 30 was witnessed" in answer["detail"]
    other = command("log", "verify", "--data-dir", str(folder), "--head", f"7:{'0' * 64}")
    assert other.code == 65
    assert other.out.startswith("damaged at position 7: event 7: it is not the event that was witnessed")


def test_a_log_with_its_checkpoint_is_held_to_a_head_too(
    log: Path, copy: tuple[Path, list[str]], command: Command
) -> None:
    assert command("log", "verify", "--data-dir", str(log)).code == 0
    assert command("log", "verify", "--data-dir", str(log), "--head", copy[1][29]).code == 0
    assert command("log", "verify", "--data-dir", str(log), "--head", f"30:{'1' * 64}").code == 65


@pytest.mark.parametrize("head", ["7", f"7:{'0' * 63}", f"0:{'0' * 64}", f"x:{'0' * 64}", f"-7:{'0' * 64}"])
def test_what_is_no_head(log: Path, command: Command, head: str) -> None:
    refused = command("log", "verify", "--data-dir", str(log), f"--head={head}")
    assert refused.code == 64
    assert "is not " in refused.err


def test_what_is_read_of_an_unproven_log_says_so(
    copy: tuple[Path, list[str]], command: Command, tmp_path: Path
) -> None:
    folder, _ = copy
    for name in (("show",), ("state",), ("diff", "3", "9")):
        shown = command("log", *name, "--data-dir", str(folder))
        assert shown.code == 0
        assert shown.err.startswith("sae-actor: warning: this log is unproven: 20 events verify")
        assert "give `log verify` a head that you noted" in shown.err
    exported = command("log", "export", "--data-dir", str(folder), str(tmp_path / "out.tar"))
    assert exported.code == 0
    assert "events missing at the end of the export would go unnoticed" in exported.err
    # An import is the whole of the export, whose head it has.
    imported = command("log", "import", "--data-dir", str(tmp_path / "new"), str(tmp_path / "out.tar"))
    assert (imported.code, command("log", "verify", "--data-dir", str(tmp_path / "new")).code) == (0, 0)


def test_a_service_makes_a_missing_checkpoint_again(log: Path, command: Command) -> None:
    """Row 18: a start warns, and from then on there is one."""
    (log / "head.checkpoint").unlink()
    asyncio.run(_live(log))
    assert command("log", "verify", "--data-dir", str(log)).code == 0


async def _live(folder: Path) -> None:
    await (await SqliteLog.open(folder)).close()
