"""Export, the verifier on a bare Python, import, and backup: the same log to the last hash."""

from __future__ import annotations

import asyncio
import io
import json
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from sae_actor.errors import BadRequestError, LogDamagedError, LogHeldError, LogUnusableError, NotFoundError
from sae_actor.eventlog import SqliteLog, backup, events_of, export_bundle, import_bundle, verify_folder
from sae_actor.eventlog.audit import verifier
from sae_actor.eventlog.audit.contents import NAMES
from sae_actor.eventlog.connection import Connection
from tests.eventlog.audit.test_redaction import make as make_with_text
from tests.eventlog.audit.test_redaction import redact_all
from tests.eventlog.making import a_draft, content, fill, make_killed_log, make_log, shown

pytestmark = pytest.mark.anyio


def verify_bare(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run the exported verifier as anyone would: another working folder, no site packages, no sae_actor."""
    command = [sys.executable, "-I", "-S", str(folder / "verify.py"), *arguments]
    answer = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert answer.stderr == ""
    return answer.returncode, answer.stdout.strip()


async def exported(tmp_path: Path, count: int = 30) -> Path:
    await make_log(tmp_path / "log", count)
    await export_bundle(tmp_path / "log", tmp_path / "bundle")
    return tmp_path / "bundle"


async def test_an_export_verifies_on_a_bare_python_and_imports_to_the_same_log(tmp_path: Path) -> None:
    events = await make_killed_log(tmp_path / "log", 700)
    before = content(tmp_path / "log")
    head = await export_bundle(tmp_path / "log", tmp_path / "bundle")
    assert content(tmp_path / "log") == before
    assert sorted(content(tmp_path / "bundle")) == sorted(NAMES)
    assert verify_bare(tmp_path / "bundle") == (0, f"ok: 700 events, head 700:{head.hash}")

    lines = (tmp_path / "bundle" / "events.ndjson").read_text().splitlines()
    for line, event in zip(lines, events, strict=True):
        fields = json.loads(line)
        assert fields["data"] == json.loads(bytes(event.data))
        assert {name: fields[name] for name in ("position", "type", "command_id", "hash")} == {
            "position": event.position,
            "type": event.type,
            "command_id": event.command_id,
            "hash": event.hash,
        }

    assert await import_bundle(tmp_path / "bundle", tmp_path / "new") == head
    assert shown([event async for event in events_of(tmp_path / "new")]) == shown(events)
    assert (await verify_folder(tmp_path / "new")).ok
    log = await SqliteLog.open(tmp_path / "new")
    await log.append([a_draft()], expected=700)
    await log.close()


async def test_a_tar_holds_the_same(tmp_path: Path) -> None:
    bundle = await exported(tmp_path)
    await export_bundle(tmp_path / "log", tmp_path / "log.tar")
    with tarfile.open(tmp_path / "log.tar") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert content(tmp_path / "unpacked" / "log") == content(bundle)
    await import_bundle(tmp_path / "log.tar", tmp_path / "new")
    original = [event async for event in events_of(tmp_path / "log")]
    assert shown([event async for event in events_of(tmp_path / "new")]) == shown(original)


async def test_texts_of_every_kind_and_an_empty_log_are_exported_exactly(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path / "log")
    for text in ('","data":', "\u2028\u2029\x85", "🙂\x00\x7f\x1f", "é\\u0041\\", ""):
        await log.append([a_draft(text, command_id=text, principal=text)], expected=log.head.position)
    await log.close()
    await export_bundle(tmp_path / "log", tmp_path / "bundle")
    assert verify_bare(tmp_path / "bundle")[0] == 0
    await import_bundle(tmp_path / "bundle", tmp_path / "new")
    original = [event async for event in events_of(tmp_path / "log")]
    assert shown([event async for event in events_of(tmp_path / "new")]) == shown(original)

    await make_log(tmp_path / "empty", 0)
    await export_bundle(tmp_path / "empty", tmp_path / "nothing")
    assert verify_bare(tmp_path / "nothing")[0] == 0
    await import_bundle(tmp_path / "nothing", tmp_path / "also-empty")
    assert (await verify_folder(tmp_path / "also-empty")).events == 0


async def test_erased_payloads_stay_erased(tmp_path: Path) -> None:
    await make_with_text(tmp_path / "log")
    await redact_all(tmp_path / "log", 2, 3)
    await export_bundle(tmp_path / "log", tmp_path / "bundle")
    assert verify_bare(tmp_path / "bundle")[0] == 0
    await import_bundle(tmp_path / "bundle", tmp_path / "new")
    assert (await verify_folder(tmp_path / "new")).events == 7
    # Without the record of the erasure the missing payload is damage.
    lines = (tmp_path / "bundle" / "events.ndjson").read_bytes().splitlines(keepends=True)
    with pytest.raises(verifier.BadEventError, match="event 2: the payload is missing"):
        list(verifier.walk(lines[:5], json.loads((tmp_path / "bundle" / "log.json").read_bytes())["log_id"]))


async def test_every_changed_byte_of_the_events_is_found(tmp_path: Path) -> None:
    """Exhaustive over the bytes; the bits of each by chance."""
    bundle = await exported(tmp_path, 12)
    about = json.loads((bundle / "log.json").read_bytes())
    lines = (bundle / "events.ndjson").read_bytes().splitlines(keepends=True)
    chance = random.Random(3)
    checked = 0
    for number, line in enumerate(lines):
        for at in range(len(line)):
            changed = bytearray(line)
            changed[at] ^= chance.randrange(1, 256) if at % 2 else 1 << chance.randrange(8)
            damaged = b"".join([*lines[:number], bytes(changed), *lines[number + 1 :]])
            with pytest.raises(verifier.BadEventError) as found:
                list(verifier.walk(io.BytesIO(damaged), about["log_id"]))
            assert found.value.position == number + 1
            checked += 1
    assert checked > 4000


async def test_tails_and_orders_are_judged_by_the_head(tmp_path: Path) -> None:
    bundle = await exported(tmp_path, 12)
    events = bundle / "events.ndjson"
    lines = events.read_bytes().splitlines(keepends=True)
    about = json.loads((bundle / "log.json").read_bytes())
    for changed, first_bad in (
        (lines[:-1], 12),
        (lines[:3], 4),
        ([], 1),
        ([*lines[:4], lines[5], lines[4], *lines[6:]], 5),
        (lines[1:], 1),
        ([*lines, lines[-1]], 13),
        ([*lines, b"\n"], 13),
        ([*lines[:-1], lines[-1].rstrip()], 12),
    ):
        events.write_bytes(b"".join(changed))
        code, text = verify_bare(bundle)
        assert (code, text.partition(":")[0]) == (65, f"event {first_bad}")
        with pytest.raises(LogDamagedError) as refusal:
            await import_bundle(bundle, tmp_path / "new")
        assert refusal.value.fields["first_bad"] == first_bad
        assert "events.db" not in content(tmp_path / "new")
    # Who cuts the tail and the head of the export alike is found by a head that was noted before.
    witnessed = f"12:{about['head']['hash']}"
    events.write_bytes(b"".join(lines[:5]))
    about["head"] = {"position": 5, "hash": json.loads(lines[4])["hash"]}
    (bundle / "log.json").write_text(json.dumps(about))
    assert verify_bare(bundle)[0] == 0
    assert verify_bare(bundle, "--head", witnessed) == (65, "event 6: missing; an event 12 was witnessed")
    assert verify_bare(bundle, "--head", f"3:{'0' * 64}")[0] == 65
    assert verify_bare(bundle, "--head", f"5:{'0' * 64}") == (65, "event 5: not the event that was witnessed")


async def test_nothing_is_overwritten(tmp_path: Path) -> None:
    bundle = await exported(tmp_path)
    with pytest.raises(BadRequestError, match="overwrites nothing"):
        await export_bundle(tmp_path / "log", bundle)
    before = content(tmp_path / "log")
    with pytest.raises(LogUnusableError, match="overwrites nothing"):
        await import_bundle(bundle, tmp_path / "log")
    assert content(tmp_path / "log") == before
    log = await SqliteLog.open(tmp_path / "log")
    with pytest.raises(LogHeldError):
        await export_bundle(tmp_path / "log", tmp_path / "other")
    with pytest.raises(LogHeldError):
        await import_bundle(bundle, tmp_path / "log")
    await log.close()


async def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    bundle = await exported(tmp_path)
    (tmp_path / "text").write_text("x")
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        tar.add(tmp_path / "text", arcname="../../log.json")
    with pytest.raises(NotFoundError):
        await import_bundle(tmp_path / "none", tmp_path / "new")
    for odd in (tmp_path / "text", tmp_path / "odd.tar", tmp_path):
        with pytest.raises(LogDamagedError, match="not an export"):
            await import_bundle(odd, tmp_path / "new")
    (bundle / "log.json").write_text('{"log_id": 7, "created": "x", "head": {"position": 1, "hash": "y"}}')
    with pytest.raises(LogDamagedError, match="does not name its log"):
        await import_bundle(bundle, tmp_path / "new")
    assert not (tmp_path / "new").exists()


async def test_a_damaged_log_is_not_exported(tmp_path: Path) -> None:
    await make_log(tmp_path / "log", 30)
    stored = (tmp_path / "log" / "events.db").read_bytes()
    (tmp_path / "log" / "events.db").write_bytes(stored.replace(b'"reason":"r6"', b'"reason":"R6"'))
    with pytest.raises(LogDamagedError) as refusal:
        await export_bundle(tmp_path / "log", tmp_path / "bundle")
    assert refusal.value.fields["first_bad"] == 7
    assert sorted(path.name for path in await asyncio.to_thread(lambda: list(tmp_path.iterdir()))) == ["log"]


async def test_a_backup_is_taken_while_appends_go_on(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path / "log")
    await fill(log, 1800, per_append=200)

    async def write() -> None:
        for i in range(100):
            await log.append([a_draft()], expected=1800 + i)

    head, _ = await asyncio.gather(log.backup(tmp_path / "copy"), write())
    assert 1800 <= head.position <= 1900
    events = await log.read(0, head.position)
    with pytest.raises(LogUnusableError, match="overwrites nothing"):
        await log.backup(tmp_path / "copy")
    with pytest.raises(LogHeldError):
        await log.backup(tmp_path / "log")
    await log.close()
    copy = await SqliteLog.open(tmp_path / "copy")
    assert copy.log_id == log.log_id
    assert shown(await copy.read(0, 2000)) == shown(events)
    await copy.close()


async def test_a_backup_under_writes_is_one_of_the_moments_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page a step, and a writer that never rests: an append waits for a step, and the copy is whole."""
    monkeypatch.setattr(backup, "STEP_PAGES", 1)
    log = await SqliteLog.open(tmp_path / "log")
    await fill(log, 2000, per_append=500)
    done = asyncio.Event()

    async def write() -> int:
        appends = 0
        while not done.is_set():
            await log.append([a_draft("x" * 300)], expected=log.head.position)
            appends += 1
        return appends

    writing = asyncio.ensure_future(write())
    heads = [await log.backup(tmp_path / f"{number}") for number in range(3)]
    done.set()
    assert await writing > 10
    assert heads[-1].position > 2000, "what was appended meanwhile is in the copy"
    events = await log.read(0, log.head.position)
    assert (await log.verify()).ok
    await log.close()
    for number, head in enumerate(heads):
        assert sorted(content(tmp_path / f"{number}")) == ["events.db", "head.checkpoint"]
        verification = await verify_folder(tmp_path / f"{number}")
        assert (verification.ok, verification.head) == (True, head)
        copied = [event async for event in events_of(tmp_path / f"{number}")]
        assert shown(copied) == shown(events[: head.position])


async def test_a_backup_that_is_cancelled_is_there_or_not(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path / "log")
    await fill(log, 3000, per_append=500)
    for steps in (0, 1, 2, 3, 5, 8, 13, 30, 100):
        task = asyncio.ensure_future(log.backup(tmp_path / f"{steps}"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if steps == 0:
            assert not (tmp_path / "0").exists()
        elif content(tmp_path / f"{steps}"):
            assert (await verify_folder(tmp_path / f"{steps}")).events == 3000
        await log.append([], expected=3000)
    await log.close()


async def test_a_backup_ends_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "STEP_PAGES", 1)
    give_way = Connection.give_way

    def slowly(self: Connection) -> None:
        time.sleep(0.002)
        give_way(self)

    monkeypatch.setattr(Connection, "give_way", slowly)
    log = await SqliteLog.open(tmp_path / "log")
    await fill(log, 3000, per_append=500)
    copying = asyncio.ensure_future(log.backup(tmp_path / "copy"))
    while not (tmp_path / "copy" / "events.db.new").exists():
        await asyncio.sleep(0)
    await log.close()
    with pytest.raises(LogUnusableError, match="closed"):
        await copying
    assert content(tmp_path / "copy") == {}
    assert (await verify_folder(tmp_path / "log")).events == 3000


async def test_what_was_changed_under_the_log_is_not_backed_up(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path / "log")
    await fill(log, 900)
    (trigger,) = (await log._db.fetch("SELECT sql FROM sqlite_schema WHERE name = 'events_are_final'"))[0]
    for statement in ("DROP TRIGGER events_are_final", "UPDATE events SET principal = 'x' WHERE position = 7", trigger):
        await log._db.fetch(statement)
    with pytest.raises(LogDamagedError) as refusal:
        await log.backup(tmp_path / "copy")
    assert refusal.value.fields["first_bad"] == 7
    assert content(tmp_path / "copy") == {}
    await log.close()
