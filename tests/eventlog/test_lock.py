"""Who may hold a log: one writer or many readers, told apart by a lock that dies with its holder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from sae_actor.errors import LogHeldError
from sae_actor.eventlog import SqliteLog, verify_folder
from sae_actor.eventlog.lock import NAME
from tests.children import child
from tests.eventlog.making import a_draft, make_log, python

pytestmark = pytest.mark.anyio

Start = Callable[[Path], "Holder"]


class Holder:
    def __init__(self, folder: Path) -> None:
        self.process = python("tests.eventlog.holder", str(folder), stdin=subprocess.PIPE)
        assert self.answer() == "ready"

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        self.send(line)
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def start(folder: Path) -> Holder:
            holder = Holder(folder)
            stack.callback(holder.end)
            return holder

        yield start


def run_script(script: str, folder: Path) -> str:
    """What a program with this text says of events.db on stderr."""
    command = [sys.executable, "-c", script, str(folder / "events.db")]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def script_running(script: str, folder: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, str(folder / "events.db")]
    return child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def test_of_two_that_start_together_one_wins_and_the_other_names_it(tmp_path: Path, start: Start) -> None:
    """Row 19, fifty times."""
    await make_log(tmp_path, 3)
    both = [start(tmp_path), start(tmp_path)]
    pids = [holder.process.pid for holder in both]
    for _ in range(50):
        for holder in both:
            holder.send("open")
        answers = [holder.answer() for holder in both]
        winner = next(i for i, answer in enumerate(answers) if answer.startswith("open"))
        assert answers[winner] == "open 3"
        assert answers[1 - winner] == f"refused {pids[winner]}"
        assert both[winner].ask("close") == "closed"


async def test_a_second_opener_is_refused_with_the_holders_pid(tmp_path: Path, start: Start) -> None:
    holder = start(tmp_path)
    assert holder.ask("open") == "open 0"
    for opening in (SqliteLog.open(tmp_path), SqliteLog.open(tmp_path, read_only=True), verify_folder(tmp_path)):
        with pytest.raises(LogHeldError, match=f"{holder.process.pid}.*GET /api/log") as refusal:
            await opening
        assert refusal.value.exit_code == 75
    assert holder.ask("close") == "closed"
    log = await SqliteLog.open(tmp_path)
    await log.close()


async def test_the_same_process_is_refused_too_and_the_holder_goes_on(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path)
    with pytest.raises(LogHeldError, match=str(os.getpid())):
        await SqliteLog.open(tmp_path)
    await log.append([a_draft()], expected=0)
    await log.close()


async def test_no_other_program_reads_or_writes_a_log_that_is_held(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path)
    await log.append([a_draft()], expected=0)
    script = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT count(*) FROM events')"
    assert "database is locked" in run_script(script, tmp_path)
    await log.close()


async def test_a_database_that_another_program_has_open_is_refused(tmp_path: Path) -> None:
    await make_log(tmp_path, 3)
    script = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "db.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.read()"
    )
    with script_running(script, tmp_path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LogHeldError, match="another program"):
            await SqliteLog.open(tmp_path)
        other.communicate()
    log = await SqliteLog.open(tmp_path)
    await log.close()


@pytest.mark.parametrize("text", [b"", b"garbage\n", b"-1\n", b"0\n", b"9" * 30, b"\xff\x00", b"1\n"])
async def test_the_lock_decides_not_the_text_in_the_file(tmp_path: Path, text: bytes) -> None:
    """Row 20: pid 1 lives, and has nothing to do with the log: a reused pid."""
    await make_log(tmp_path, 3)
    (tmp_path / NAME).write_bytes(text)
    began = time.monotonic()
    log = await SqliteLog.open(tmp_path)
    assert time.monotonic() - began < 3
    assert (tmp_path / NAME).read_text() == f"{os.getpid()}\n"
    await log.close()
    assert (tmp_path / NAME).read_bytes() == b""


async def test_the_lock_of_a_killed_process_is_gone(tmp_path: Path, start: Start) -> None:
    """Row 20."""
    holder = start(tmp_path)
    assert holder.ask("open") == "open 0"
    holder.process.send_signal(signal.SIGKILL)
    holder.process.wait()
    assert (tmp_path / NAME).read_text() == f"{holder.process.pid}\n"
    log = await SqliteLog.open(tmp_path)
    await log.close()


async def test_an_orphan_that_inherited_the_lock_is_waited_for(tmp_path: Path, start: Start) -> None:
    """Row 21, were a child to inherit it."""
    holder = start(tmp_path)
    assert holder.ask("open") == "open 0"
    orphan = int(holder.ask("spawn"))
    holder.process.kill()
    holder.process.wait()
    try:
        began = time.monotonic()
        with pytest.raises(LogHeldError, match=f"{holder.process.pid} left behind"):
            await SqliteLog.open(tmp_path)
        assert 4 < time.monotonic() - began < 8
    finally:
        os.kill(orphan, signal.SIGKILL)
    log = await SqliteLog.open(tmp_path)
    await log.close()


async def test_spawned_children_do_not_inherit_the_lock(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path)
    with child(["sleep", "60"], close_fds=False):
        await log.close()
        again = await SqliteLog.open(tmp_path)
        await again.close()


async def test_several_read_while_no_one_writes(tmp_path: Path) -> None:
    await make_log(tmp_path, 3)
    first = await SqliteLog.open(tmp_path, read_only=True)
    second = await SqliteLog.open(tmp_path, read_only=True)
    assert (await verify_folder(tmp_path)).ok
    await first.close()
    await second.close()
    log = await SqliteLog.open(tmp_path)
    await log.close()
