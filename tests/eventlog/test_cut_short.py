"""kill -9 at the very system call: between any write, sync, rename and the next one, of whatever is done to a log.

`strace` sends the signal when the process enters the n-th of these calls that touches the folder. Afterwards the
next start, or the same command once more, deals with everything that was left.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sae_actor.backups.making import folder_backup, sweep
from sae_actor.backups.restoring import restore
from sae_actor.domain.events import Event
from sae_actor.errors import LogUnusableError
from sae_actor.eventlog import SqliteLog, export_bundle, import_bundle, redact, verify_folder
from sae_actor.eventlog.checkpoint import read_checkpoint
from sae_actor.eventlog.origin import forget_origin, read_origin
from tests.backups.making import taken
from tests.eventlog.audit.test_bundle import verify_bare
from tests.eventlog.audit.test_redaction import make as make_with_text
from tests.eventlog.making import REPOSITORY, TIME, make_killed_log, make_log, shown

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")]

CALLS = ("pwrite64", "write", "fsync", "fdatasync", "rename", "unlink", "ftruncate", "mkdir", "rmdir")
_CALL = re.compile(r"^(\d+) +(\w+)\((?:\d+<([^>]*)>|\"([^\"]*)\")(?:, \"([^\"]*)\")?")

Moment = tuple[str, str, int]
"""Call, file, and which of those calls on that file."""


def traced(folder: Path, *arguments: str | Path, kill: Moment | None = None) -> tuple[int, str, list[Moment]]:
    """Run `cut`, killed at a moment if one is given: exit code, what it printed, the moments below `folder`."""
    trace = folder.parent / "trace"
    options = ["-e", f"trace={','.join(CALLS)}"]
    if kill is not None:
        call, path, number = kill
        options += ["-P", path, "-e", f"inject={call}:signal=KILL:when={number}"]
    answer = subprocess.run(
        ["strace", "-f", "-y", *options, "-o", str(trace), sys.executable, "-B", "-m", "tests.eventlog.cut",
         *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "ptrace" in answer.stderr:
        pytest.skip(f"strace may not be used here: {answer.stderr}")
    # strace counts for each thread on its own.
    counts: Counter[tuple[str, str, str]] = Counter()
    found: dict[Moment, None] = {}
    for line in trace.read_text().splitlines():
        if (match := _CALL.match(line)) is None:
            continue
        thread, call, *paths = match.groups()
        for path in [path for path in paths if path is not None and path.startswith(str(folder))][:1]:
            counts[thread, call, path] += 1
            found[call, path, counts[thread, call, path]] = None
    return answer.returncode, answer.stdout, list(found)


def leftovers(folder: Path) -> list[str]:
    return sorted(set(os.listdir(folder)) - {"events.db", "events.lock", "head.checkpoint"})


def came_from(folder: Path) -> str | None:
    """The note for the first start, which removes it."""
    origin = read_origin(folder)
    forget_origin(folder)
    return None if origin is None else origin.reason


async def sound(folder: Path, acknowledged: str = "") -> list[Event]:
    """The next start deals with whatever is there; nothing is left, and nothing of the anchor is half."""
    log = await SqliteLog.open(folder)
    try:
        read_checkpoint(folder, log.log_id)
        events = await log.read(0, log.head.position)
        hashes = {event.position: event.hash for event in events}
        for line in acknowledged.splitlines():
            position, digest = line.split()
            assert hashes[int(position)] == digest
    finally:
        await log.close()
    assert leftovers(folder) == []
    assert (await verify_folder(folder)).ok
    return events


async def appended(base: Path, folder: Path, printed: str) -> None:
    await sound(folder / "log", printed)


async def backed_up(base: Path, folder: Path, printed: str) -> None:
    events = await sound(folder / "log")
    log = await SqliteLog.open(folder / "log")
    try:
        await log.backup(folder / "to")
    except LogUnusableError as error:
        if "overwrites nothing" not in error.detail:  # else it is there, and whole
            raise
    await log.close()
    assert shown(await sound(folder / "to")) == shown(events)


async def exported(base: Path, folder: Path, printed: str) -> None:
    for name in ("to", "to.tar"):
        if not (folder / name).exists():
            await export_bundle(folder / "log", folder / name)
        assert verify_bare(folder / "to")[0] == 0
    assert [name for name in os.listdir(folder) if name.endswith(".new")] == []


async def imported(base: Path, folder: Path, printed: str) -> None:
    try:
        await import_bundle(folder / "log", folder / "to")
    except LogUnusableError as error:
        if "overwrites nothing" not in error.detail:  # else it is there, and whole
            raise
    assert came_from(folder / "to") == "imported"
    assert len(await sound(folder / "to")) == 40


async def restored(base: Path, folder: Path, printed: str) -> None:
    try:
        await restore(folder / "log", folder / "to")
    except LogUnusableError as error:
        if "overwrites nothing" not in error.detail:  # else it is there, and whole
            raise
        sweep(folder / "to")  # as a start does
    assert came_from(folder / "to") == "restored"
    assert (folder / "to" / "vectors" / "v-1").read_bytes() == bytes(5000)
    shutil.rmtree(folder / "to" / "vectors")
    assert len(await sound(folder / "to")) == 40


async def redacted(base: Path, folder: Path, printed: str) -> None:
    events = await sound(folder / "log")
    on_record = events[-1].type == "PayloadRedacted"
    assert (bytes(events[1].data) == b"null") == on_record
    if not on_record:
        await redact(folder / "log", 2, "asked to", time=TIME)
        assert bytes((await sound(folder / "log"))[1].data) == b"null"


ACTIONS: dict[str, Callable[[Path, Path, str], Awaitable[None]]] = {
    "append": appended, "backup": backed_up, "export": exported, "import": imported, "redact": redacted,
    "restore": restored,
}  # fmt: skip


async def make(action: str, folder: Path) -> None:
    """What the action begins with: `log` below the folder."""
    match action:
        case "append":
            await make_killed_log(folder / "log", 12)
        case "redact":
            await make_with_text(folder / "log")
        case "import":
            await make_log(folder / "made", 40)
            await export_bundle(folder / "made", folder / "log")
        case "restore":
            await make_log(folder / "made", 40)
            (folder / "made" / "vectors").mkdir()
            (folder / "made" / "vectors" / "v-1").write_bytes(bytes(5000))
            async with folder_backup(folder / "made", saes=False) as made:
                (folder / "log").write_bytes(await taken(made))
        case _:
            await make_log(folder / "log", 40)


async def cut_off(tmp_path: Path, action: str, most: int) -> int:
    """Kill at so many moments of the action, renames, syncs and removals first; how many there were."""
    base = tmp_path / "base"
    base.mkdir()
    await make(action, base)

    def begun(name: str) -> tuple[Path, list[str | Path]]:
        folder = tmp_path / name
        shutil.copytree(base, folder)
        to = [folder / "to"] if action in ("backup", "export", "import", "restore") else []
        return folder, [folder / "log", action, *to]

    folder, arguments = begun("whole")
    code, _, found = traced(folder, *arguments)
    assert code == 0
    turning = [moment for moment in found if moment[0] in ("rename", "fsync", "fdatasync", "unlink", "rmdir")]
    chance = random.Random(action)
    others = [moment for moment in found if moment not in turning]
    moments = chance.sample(turning, min(len(turning), most - most // 3))
    moments += chance.sample(others, min(len(others), most - len(moments)))
    for number, (call, path, which) in enumerate(moments):
        folder, arguments = begun(f"{number}")
        kill = (call, path.replace(str(tmp_path / "whole"), str(folder)), which)
        code, printed, _ = traced(folder, *arguments, kill=kill)
        assert code in (-signal.SIGKILL, 128 + signal.SIGKILL), f"{kill} never came"
        await ACTIONS[action](base, folder, printed)
        shutil.rmtree(folder)
    return len(moments)


@pytest.mark.parametrize("action", ACTIONS)
async def test_row_9_what_is_cut_off_is_dealt_with_by_the_next_start(tmp_path: Path, action: str) -> None:
    """Rows 2 and 9: old or new, never half; what was being made is made by the next try or was there already."""
    await cut_off(tmp_path, action, most=3)


@pytest.mark.crash
@pytest.mark.timeout(900)
@pytest.mark.parametrize("action", ACTIONS)
async def test_row_9_at_every_call(tmp_path: Path, action: str) -> None:
    print(f"{action}: {await cut_off(tmp_path, action, most=1000)} kills")
