"""What a start refuses, and that it leaves what it refuses as it was."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from sae_actor.domain.events import Draft
from sae_actor.errors import LogError, LogUnusableError, ReadOnlyError
from sae_actor.eventlog import SqliteLog, events_of, verify_folder
from sae_actor.eventlog.schema import SCHEMA
from tests.eventlog.making import REPOSITORY, a_draft, content, copy_while_open, fill, make_log, shown

pytestmark = pytest.mark.anyio


def header(at: int, value: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / "events.db").open("r+b") as file:
            file.seek(at)
            file.write(value)

    return change


def overwrite(text: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "events.db").write_bytes(text)

    return change


def directory(folder: Path) -> None:
    (folder / "events.db").unlink()
    (folder / "events.db").mkdir()


def fifo(folder: Path) -> None:
    (folder / "events.db").unlink()
    os.mkfifo(folder / "events.db")


def foreign(folder: Path) -> None:
    (folder / "events.db").unlink()
    with sqlite3.connect(folder / "events.db") as db:
        db.execute("CREATE TABLE notes (text)")
    db.close()


def gone(folder: Path) -> None:
    (folder / "events.db").unlink()


def edited(*statements: str) -> Callable[[Path], None]:
    """As the sqlite3 shell would: triggers dropped first where they are in the way."""

    def change(folder: Path) -> None:
        with sqlite3.connect(folder / "events.db") as db:
            for statement in statements:
                db.execute(statement)
        db.close()

    return change


def editing(statement: str) -> Callable[[Path], None]:
    """The row is changed and every trigger is back in its place."""
    return edited(
        "DROP TRIGGER events_are_final",
        "DROP TRIGGER events_stay",
        statement,
        SCHEMA["events_are_final"],
        SCHEMA["events_stay"],
    )


REFUSALS: dict[str, tuple[Callable[[Path], None], int, int | None]] = {
    # name: (what happened to the folder, exit code, first bad position)
    "another program's application_id": (header(68, b"\0\0\0\1"), 78, None),
    "a newer layout": (header(60, b"\0\0\0\2"), 78, None),
    "an older layout": (header(60, b"\0\0\0\0"), 78, None),
    "an empty file": (overwrite(b""), 78, None),
    "a directory": (directory, 78, None),
    "a named pipe": (fifo, 78, None),
    "another program's database": (foreign, 78, None),
    "garbage": (overwrite(b"garbage" * 1000), 65, 1),
    "half a header": (overwrite(b"SQLite format 3\0abc"), 65, 1),
    "a bad magic": (header(3, b"x"), 65, 1),
    "the database gone": (gone, 65, 1),
    "a trigger dropped": (edited("DROP TRIGGER events_are_final"), 65, None),
    "a trigger dropped and an event edited": (
        edited("DROP TRIGGER events_are_final", "UPDATE events SET principal = 'root' WHERE position = 4"),
        65,
        4,
    ),
    "a trigger rewritten": (
        edited("DROP TRIGGER events_stay", "CREATE TRIGGER events_stay AFTER DELETE ON events BEGIN SELECT 1; END"),
        65,
        None,
    ),
    "an index dropped": (edited("DROP INDEX events_of_command"), 65, None),
    "a table added": (edited("CREATE TABLE more (x)"), 65, None),
    "a column added": (edited("ALTER TABLE events ADD COLUMN more TEXT"), 65, 1),
    "the table gone": (edited("DROP TABLE events"), 65, 1),
    "another log_id": (
        edited("DROP TRIGGER meta_is_final", f"UPDATE meta SET log_id = '{'a' * 32}'", SCHEMA["meta_is_final"]),
        65,
        1,
    ),
    "a log_id that is none": (
        edited("DROP TRIGGER meta_is_final", "UPDATE meta SET log_id = 'x'", SCHEMA["meta_is_final"]),
        65,
        1,
    ),
    "a payload edited": (editing("UPDATE events SET data = x'7b7d' WHERE position = 4"), 65, 4),
    "a principal edited": (editing("UPDATE events SET principal = 'root' WHERE position = 1"), 65, 1),
    "a payload erased": (editing("UPDATE events SET data = NULL, salt = NULL WHERE position = 6"), 65, 6),
    "an event in the middle deleted": (editing("DELETE FROM events WHERE position = 5"), 65, 5),
    "the first event deleted": (editing("DELETE FROM events WHERE position = 1"), 65, 1),
    "the last event deleted": (editing("DELETE FROM events WHERE position = 9"), 65, 9),
    "all events deleted": (editing("DELETE FROM events"), 65, 1),
    "two events swapped": (
        editing("UPDATE events SET position = CASE position WHEN 4 THEN -5 ELSE -4 END WHERE position IN (4, 5)"),
        65,
        1,
    ),
    "an event appended by another program": (
        edited(
            "INSERT INTO events SELECT position + 1, event_id, type, schema, time, command_id, principal, data, salt, "
            "data_hash, hash FROM events WHERE position = 9"
        ),
        65,
        10,
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_log_that_is_not_as_it_was_written_is_refused_untouched(tmp_path: Path, name: str) -> None:
    """Rows 17 and 24."""
    change, exit_code, first_bad = REFUSALS[name]
    await make_log(tmp_path, 9)
    change(tmp_path)
    before = content(tmp_path)
    for opening in (SqliteLog.open(tmp_path), SqliteLog.open(tmp_path, read_only=True)):
        with pytest.raises(LogError) as refusal:
            await opening
        assert refusal.value.exit_code == exit_code
        assert refusal.value.fields.get("first_bad") == first_bad
        assert content(tmp_path) == before
    if exit_code == 65:
        verification = await verify_folder(tmp_path)
        assert not verification.ok
        assert verification.first_bad == first_bad
        assert verification.detail
    else:
        with pytest.raises(LogUnusableError):
            await verify_folder(tmp_path)
    assert content(tmp_path) == before


async def test_rows_edited_through_sqlite_are_stopped_by_the_triggers_first(tmp_path: Path) -> None:
    await make_log(tmp_path, 9)
    db = sqlite3.connect(tmp_path / "events.db")
    for statement in (
        "UPDATE events SET principal = 'root' WHERE position = 3",
        "UPDATE events SET data = NULL, salt = NULL WHERE position = 3",
        "DELETE FROM events WHERE position = 9",
        "INSERT INTO events SELECT position + 10, event_id, type, schema, time, command_id, principal, data, salt, "
        "data_hash, hash FROM events WHERE position = 9",
        "INSERT OR REPLACE INTO events SELECT * FROM events WHERE position = 3",
        "REPLACE INTO events (event_id, type, schema, time, principal, data_hash, hash) SELECT event_id, type, schema, "
        "time, principal, data_hash, hash FROM events",
        "UPDATE meta SET log_id = 'x'",
        "DELETE FROM meta",
        "INSERT INTO meta VALUES (2, 'x', 'y')",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            db.execute(statement)
    db.close()
    assert (await verify_folder(tmp_path)).ok


def of_a_future_version(kind: str, schema: int) -> Draft:
    return replace(a_draft(), type=kind, schema=schema)


@pytest.mark.parametrize(("kind", "schema"), [("SaeMelted", 1), ("ActorStopped", 2)])
async def test_an_event_of_a_newer_version_is_read_but_not_written_behind(
    tmp_path: Path, kind: str, schema: int
) -> None:
    """Row 23."""
    log = await SqliteLog.open(tmp_path)
    await fill(log, 4)
    await log.append([of_a_future_version(kind, schema)], expected=4)
    events = shown(await log.read())
    await log.close()
    before = content(tmp_path)
    with pytest.raises(LogUnusableError, match="newer sae-actor, or --read-only") as refusal:
        await SqliteLog.open(tmp_path)
    assert refusal.value.exit_code == 78
    assert content(tmp_path) == before
    log = await SqliteLog.open(tmp_path, read_only=True)
    assert shown(await log.read()) == events
    assert (await log.verify()).ok
    await log.close()
    assert (await verify_folder(tmp_path)).ok
    assert shown([event async for event in events_of(tmp_path)]) == events


async def test_an_unknown_field_is_kept_and_served(tmp_path: Path) -> None:
    """Row 23."""
    log = await SqliteLog.open(tmp_path)
    strange = of_a_future_version("ActorStopped", 1)
    strange = Draft(
        **{**{n: getattr(strange, n) for n in strange.__struct_fields__}, "data": type(strange.data)(b'{"mood":1}')}
    )
    await log.append([strange], expected=0)
    await log.close()
    log = await SqliteLog.open(tmp_path)
    assert bytes((await log.read())[0].data) == b'{"mood":1}'
    await log.close()


async def test_reading_only_changes_nothing(tmp_path: Path) -> None:
    events = await make_log(tmp_path, 700)
    before = content(tmp_path)
    log = await SqliteLog.open(tmp_path, read_only=True)
    assert log.head.position == 700
    assert shown(await log.read(0, 700)) == shown(events)
    assert (await log.verify()).ok
    with pytest.raises(ReadOnlyError):
        await log.append([a_draft()], expected=700)
    await log.close()
    assert content(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["events.db", "events.lock", "head.checkpoint"]


async def test_a_folder_without_a_log_is_made_by_a_writer_alone(tmp_path: Path) -> None:
    for opening in (SqliteLog.open(tmp_path / "no", read_only=True), verify_folder(tmp_path / "no")):
        with pytest.raises(LogUnusableError):
            await opening
    assert not (tmp_path / "no").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(LogUnusableError):
        await SqliteLog.open(tmp_path / "file")
    log = await SqliteLog.open(tmp_path / "a" / "b" / "café ?%41#x")
    await log.append([a_draft()], expected=0)
    await log.close()
    log = await SqliteLog.open(tmp_path / "a" / "b" / "café ?%41#x")
    assert log.head.position == 1
    await log.close()


def as_nobody(folder: Path, action: str) -> str:
    """Open the log as a user who may not write in its folder."""
    script = (
        "import asyncio, concurrent.futures.thread, os, sys; from pathlib import Path\n"
        "from sae_actor.eventlog import SqliteLog; from sae_actor.errors import LogError\n"
        "async def main():\n"
        "    try: log = await SqliteLog.open(Path(sys.argv[1]), read_only=sys.argv[2] == 'read')\n"
        "    except LogError as error: print(error.exit_code, error.detail); return\n"
        "    print('head', log.head.position, (await log.verify()).ok); await log.close()\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); asyncio.run(main())"
    )
    command = [sys.executable, "-c", script, str(folder), action]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without rights")
@pytest.mark.parametrize("ending", ["closed", "killed"])
async def test_a_folder_that_may_not_be_written_is_served_read_only(tmp_path: Path, ending: str) -> None:
    """Row 14, by its permissions."""
    log = await SqliteLog.open(tmp_path / "log")
    await fill(log, 30)
    # pytest's own folders are closed to other users.
    folder = Path(tempfile.mkdtemp()) / "log"
    try:
        if ending == "killed":
            copy_while_open(tmp_path / "log", folder)
        await log.close()
        if ending == "closed":
            shutil.copytree(tmp_path / "log", folder)
        folder.parent.chmod(0o755)
        for path in folder.iterdir():
            path.chmod(0o444)
        folder.chmod(0o555)
        before = content(folder)
        assert ("events.db-wal" in before) == (ending == "killed")
        assert as_nobody(folder, "write").startswith("78 ")
        assert as_nobody(folder, "read") == "head 30 True\n"
        assert content(folder) == before
    finally:
        shutil.rmtree(folder.parent)
