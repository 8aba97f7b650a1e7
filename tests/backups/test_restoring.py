"""A backup is verified before it is a data folder; what is not as it was made leaves nothing."""

# ruff: noqa: ASYNC240 - files of a test are small

from __future__ import annotations

import asyncio
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sae_actor.backups.making import folder_backup
from sae_actor.backups.restoring import restore
from sae_actor.errors import LogDamagedError, LogHeldError, LogUnusableError, NotFoundError
from sae_actor.eventlog import SqliteLog, events_of, verify_folder
from sae_actor.eventlog.lock import FolderLock
from tests.eventlog.making import content, make_log, shown

from .making import changed, taken

pytestmark = pytest.mark.anyio
Held = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
async def data(tmp_path: Path) -> bytes:
    """A backup of 30 events, vectors and labels."""
    await make_log(tmp_path / "log", 30)
    for name in ("vectors/v-1/vectors.safetensors", "labels/a"):
        (tmp_path / "log" / name).parent.mkdir(parents=True)
        (tmp_path / "log" / name).write_bytes(name.encode())
    async with folder_backup(tmp_path / "log", saes=False) as made:
        return await taken(made)


@pytest.fixture
def file(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "backup.tar").write_bytes(data)
    return tmp_path / "backup.tar"


async def test_it_is_the_same_folder(file: Path, tmp_path: Path) -> None:
    manifest = await restore(file, tmp_path / "new")
    held = content(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "events.origin").read_bytes()) == {
        "reason": "restored", "log_id": manifest.log_id, "head": {"position": 30, "hash": manifest.head.hash},
    }  # fmt: skip
    assert [*held] == [
        "events.db", "events.origin", "head.checkpoint", "labels/a", "vectors/v-1/vectors.safetensors",
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "new").iterdir() if path.is_dir() and path.stat().st_mode & 0o077] == []
    verification = await verify_folder(tmp_path / "new")
    assert (verification.ok, verification.head, verification.unproven) == (True, manifest.head, False)
    copied = [event async for event in events_of(tmp_path / "new")]
    assert shown(copied) == shown([event async for event in events_of(tmp_path / "log")])
    log = await SqliteLog.open(tmp_path / "new")
    found = await log.taken_over()
    assert found.origin is not None
    assert (found.origin.reason, found.origin.head.position) == ("restored", 30)
    await log.settle()
    assert (await log.taken_over()).origin is None
    await log.close()


async def test_what_is_there_is_not_overwritten(file: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    await restore(file, there)
    before = content(there)
    for folder in (there, tmp_path / "log"):
        with pytest.raises(LogUnusableError, match="not empty"):
            await restore(file, folder)
    assert content(there) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(LogUnusableError, match=r"it holds mine\.txt"):
        await restore(file, tmp_path / "other")
    with pytest.raises(LogUnusableError):
        await restore(file, tmp_path / "other" / "mine.txt")
    assert content(tmp_path / "other").keys() == {"mine.txt"}


async def test_a_folder_that_a_start_takes_meanwhile(file: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    lock = await FolderLock.acquire(tmp_path / "new", shared=False)
    with pytest.raises(LogHeldError):
        await restore(file, tmp_path / "new")
    lock.close()
    assert content(tmp_path / "new") == {}


async def test_what_a_killed_restore_left_is_begun_anew(file: Path, tmp_path: Path) -> None:
    left = tmp_path / "new" / "restore.tmp"
    left.mkdir(parents=True)
    (left / "events.db").write_bytes(b"half")
    (tmp_path / "new" / "events.lock").touch()
    await restore(file, tmp_path / "new")
    assert (await verify_folder(tmp_path / "new")).ok
    assert not left.exists()


async def test_a_restore_killed_among_its_names_is_no_log(file: Path, tmp_path: Path) -> None:
    """The log gets its name last: what a kill leaves before that a start refuses, and another restore replaces."""
    new = tmp_path / "new"
    await restore(file, new)
    whole = content(new)
    (new / "restore.tmp").mkdir()
    (new / "events.db").rename(new / "restore.tmp" / "events.db")
    (new / "labels" / "half").write_bytes(b"")
    with pytest.raises(LogDamagedError, match=r"holds head\.checkpoint but no events\.db"):
        await SqliteLog.open(new)
    await restore(file, new)
    assert {name: digest for name, digest in content(new).items() if name != "events.db"} == {
        name: digest for name, digest in whole.items() if name != "events.db"
    }
    assert (await verify_folder(new)).ok
    # Without its folder it was no restore: what lies there is somebody's.
    (new / "events.db").unlink()
    with pytest.raises(LogUnusableError, match="not empty"):
        await restore(file, new)


async def test_a_restore_that_fails_among_its_names(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "events.db":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    (tmp_path / "empty").mkdir()
    for folder in ("new", "empty"):
        with pytest.raises(LogUnusableError, match="Input/output"):
            await restore(file, tmp_path / folder)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def replaced(held: Held, name: str, data: bytes) -> None:
    at = next(i for i, (info, _) in enumerate(held) if info.name == name)
    held[at] = (held[at][0], data)


def listed(held: Held, path: str, **fields: Any) -> None:
    """Name a member in the manifest, as it is or as `fields` say."""
    manifest = json.loads(held[-1][1])
    manifest["files"] = [each for each in manifest["files"] if each["path"] != path] + [{"path": path, **fields}]
    held[-1] = (held[-1][0], json.dumps(manifest).encode())


def added(held: Held, name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    held.insert(0, (info, b""))
    empty = {"sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
    listed(held, name, **(fields or ({"link": link} if link else empty)))


def another_head(held: Held) -> None:
    manifest = json.loads(held[-1][1])
    manifest["head"]["position"] = 31
    held[-1] = (held[-1][0], json.dumps(manifest).encode())


def one_bit(held: Held) -> None:
    data = bytearray(next(data for info, data in held if info.name == "events.db"))
    data[len(data) // 2] ^= 1
    replaced(held, "events.db", bytes(data))


def rewritten(held: Held) -> None:
    """A payload changed by somebody who knows of the manifest."""

    data = next(data for info, data in held if info.name == "events.db").replace(b'"r6"', b'"R6"')
    replaced(held, "events.db", data)
    listed(held, "events.db", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


CHANGES = {
    "one bit": one_bit,
    "a payload, digest made anew": rewritten,
    "another head": another_head,
    "a member more": lambda held: held.insert(0, (tarfile.TarInfo("vectors/x"), b"x")),
    "a member less": lambda held: held.pop(0),
    "labels shorter": lambda held: replaced(held, "labels/a", b"labels"),
    "no manifest": lambda held: held.pop(),
    "twice": lambda held: held.insert(0, held[0]),
    "not JSON": lambda held: replaced(held, "manifest.json", b"{"),
    "another format": lambda held: replaced(held, "manifest.json", held[-1][1].replace(b'"format": 1', b'"format": 2')),
    "no checkpoint": lambda held: held.pop(1),
    "a path upwards": lambda held: added(held, "vectors/../../canary"),
    "an absolute path": lambda held: added(held, "/tmp/canary"),
    "another file of the folder": lambda held: added(held, "events.lock"),
    "settings": lambda held: added(held, "config/config.toml"),
    "a link outside": lambda held: added(held, "vectors/x", tarfile.SYMTYPE, "/etc"),
    "a link upwards": lambda held: added(
        held, f"hub/models--a--b/snapshots/{'a' * 40}/x", tarfile.SYMTYPE, f"../../../blobs/{'b' * 64}"
    ),
    "a hard link": lambda held: added(held, "vectors/x", tarfile.LNKTYPE, "events.db"),
    "a device": lambda held: added(held, "vectors/x", tarfile.CHRTYPE),
    "a folder": lambda held: added(held, "vectors/x", tarfile.DIRTYPE),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_another_tar_is_refused_and_leaves_nothing(change: str, data: bytes, file: Path, tmp_path: Path) -> None:
    file.write_bytes(changed(data, CHANGES[change]))
    (tmp_path / "empty").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    for folder in ("new", "empty"):
        with pytest.raises((LogDamagedError, LogUnusableError)) as refusal:
            await restore(file, tmp_path / folder)
        assert refusal.value.exit_code in (65, 78)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert list((tmp_path / "empty").iterdir()) == []


async def test_it_is_cut_off_anywhere(data: bytes, file: Path, tmp_path: Path) -> None:
    for at in (0, 1, 511, 512, 5000, len(data) // 2, len(data) - 3000, len(data) - 1024 - 512):
        file.write_bytes(data[:at])
        with pytest.raises(LogDamagedError) as refusal:
            await restore(file, tmp_path / "new")
        assert refusal.value.exit_code == 65
        assert not (tmp_path / "new").exists()
    with pytest.raises(NotFoundError):
        await restore(tmp_path / "none.tar", tmp_path / "new")


async def test_row_78_a_log_without_its_checkpoint_stays_unproven(tmp_path: Path) -> None:
    await make_log(tmp_path / "log", 30)
    (tmp_path / "log" / "head.checkpoint").unlink()
    async with folder_backup(tmp_path / "log", saes=False) as made:
        (tmp_path / "backup.tar").write_bytes(await taken(made))
    manifest = await restore(tmp_path / "backup.tar", tmp_path / "new")
    assert not manifest.witnessed
    assert (await verify_folder(tmp_path / "new")).unproven
    assert (await verify_folder(tmp_path / "new", [manifest.head])).unproven is False


async def test_a_full_disk_leaves_nothing(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(LogUnusableError, match="No space left"):
        await restore(file, tmp_path / "new")
    assert not await asyncio.to_thread((tmp_path / "new").exists)
