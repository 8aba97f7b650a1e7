"""`log export` and `log import`: a log as one folder or tar that anyone can read and verify with a bare Python."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from ...domain.events import ERASED, LogHead
from ...domain.messages import LogOrigin
from ...domain.structs import filled
from ...errors import BadRequestError, LogDamagedError, LogUnusableError, NotFoundError
from ...ports import Head
from ...ports.durability import fsync_path
from ..chain import Row, Walk, as_read
from ..checkpoint import Checkpoint
from ..inspection import Findings, damage, inspect, missing_log, reading
from ..lock import NAME as LOCK_NAME
from ..lock import FolderLock, make_folder
from ..new_database import NewDatabase
from ..origin import forget_origin, write_origin
from ..schema import COLUMNS, NAME
from . import verifier
from .contents import ABOUT, EVENTS, NAMES, companions, line_of

_BATCH = 500


async def export_bundle(folder: Path, to: Path) -> Head:
    """Write the log of a data folder to `to`: a folder, or a tar if the name ends in `.tar`. Returns its head.

    The log is verified first. Raises `BadRequestError` if `to` exists, `LogUnusableError` if it cannot be made, and
    the errors of `inspect`.
    """
    with contextlib.closing(await FolderLock.acquire(folder, shared=True)):
        return await asyncio.to_thread(_export, folder, to)


async def import_bundle(bundle: Path, folder: Path) -> Head:
    """Make a data folder's log from an export, the same to the last hash; its head.

    Raises `LogUnusableError` if the folder has a log, `NotFoundError` if there is no `bundle`, and `LogDamagedError` if
    it is not an export or (`first_bad`) does not verify. Then the folder stays as it was, or missing.
    """
    if not await asyncio.to_thread((folder / LOCK_NAME).exists):  # what is refused makes none
        await asyncio.to_thread(_check, bundle)
    await asyncio.to_thread(make_folder, folder)
    with contextlib.closing(await FolderLock.acquire(folder, shared=False)):
        return await asyncio.to_thread(_import, bundle, folder)


def _export(folder: Path, to: Path) -> Head:
    if to.exists() or to.is_symlink():
        raise BadRequestError(f"{to} exists already; an export overwrites nothing")
    findings = inspect(folder, thorough=True)
    fresh = to.with_name(f"{to.name}.new")
    _make_anew(fresh, {*NAMES, to.name})
    try:
        _write_files(folder, findings, fresh)
        if to.suffix == ".tar":
            packed = fresh / to.name
            with tarfile.open(packed, "w") as tar:
                for name in NAMES:
                    tar.add(fresh / name, arcname=f"{to.stem}/{name}")
            fsync_path(packed)
            os.replace(packed, to)
        else:
            os.replace(fresh, to)
        fsync_path(to.parent)
    except OSError as error:
        raise LogUnusableError(f"{to} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return findings.head


def _make_anew(fresh: Path, ours: set[str]) -> None:
    """A folder to write in; one that an export left which was killed goes first, and no other."""
    try:
        if fresh.is_dir() and not fresh.is_symlink() and set(os.listdir(fresh)) <= ours:
            shutil.rmtree(fresh)
        fresh.mkdir(parents=True)
    except FileExistsError:
        raise LogUnusableError(f"{fresh} is in the way; move it, or export to another place") from None
    except OSError as error:
        raise LogUnusableError(f"{fresh} cannot be made: {error.strerror}") from None


def _write_files(folder: Path, findings: Findings, to: Path) -> None:
    with reading(folder / NAME) as connection, (to / EVENTS).open("wb") as file:
        connection.text_factory = str
        (created,) = connection.execute("SELECT created FROM meta").fetchone()
        for row in connection.execute(f"SELECT {COLUMNS} FROM events ORDER BY position"):
            file.write(line_of(Row(*row)))
    for name, content in companions(findings.log_id, created, findings.head).items():
        (to / name).write_bytes(content)
    for name in NAMES:
        fsync_path(to / name)


def _import(bundle: Path, folder: Path) -> Head:
    if not missing_log(folder):
        raise LogUnusableError(f"{folder} has a log already; an import overwrites nothing")
    try:
        with contextlib.ExitStack() as stack:
            about, batches = stack.enter_context(rows_of(bundle))
            database = stack.enter_context(contextlib.closing(NewDatabase(folder, about.log_id, about.created)))
            for rows in batches:
                database.add(rows)
            write_origin(folder, LogOrigin(reason="imported", log_id=about.log_id, head=filled(LogHead, about.head)))
            database.publish()
        Checkpoint.create(folder, about.log_id, about.head).close()
    except (sqlite3.Error, OSError) as error:
        raise LogUnusableError(f"{folder} cannot be written: {error}") from None
    finally:
        if not (folder / NAME).exists():
            forget_origin(folder)
    return about.head


def _check(bundle: Path) -> None:
    """Read all of a bundle; raises as `import_bundle`."""
    try:
        with rows_of(bundle) as (_, batches):
            for _ in batches:
                pass
    except OSError as error:
        raise LogUnusableError(f"{bundle} cannot be read: {error.strerror}") from None


class About(NamedTuple):
    """What `log.json` says."""

    log_id: str
    created: str
    head: Head


@contextlib.contextmanager
def rows_of(bundle: Path) -> Iterator[tuple[About, Iterator[list[Row]]]]:
    """A bundle's `log.json`, and its rows, each batch verified before it is yielded, the head at the end."""
    with _files(bundle) as (said, lines):
        try:
            head = Head(said["head"]["position"], said["head"]["hash"])
            about = About(said["log_id"], str(said["created"]), head)
            walk = Walk(about.log_id)
        except (KeyError, TypeError, ValueError):
            raise LogDamagedError(f"{bundle}: {ABOUT} does not name its log") from None
        try:
            yield about, _verified(lines, walk, head)
        except tarfile.TarError as error:
            raise damage(walk, walk.position + 1, f"{bundle} cannot be read further: {error}") from None


def _verified(lines: Iterable[bytes], walk: Walk, said: Head) -> Iterator[list[Row]]:
    for rows in _batches(lines, walk):
        if not walk.feed(map(as_read, rows)):
            raise damage(walk, walk.position + 1, walk.bad or "")
        yield rows
    if (fault := walk.fault()) is not None:
        raise damage(walk, *fault)
    if walk.head != said:
        raise damage(walk, min(walk.position, said.position) + 1, "the events do not end at the head")


def _batches(lines: Iterable[bytes], walk: Walk) -> Iterator[list[Row]]:
    rows: list[Row] = []
    for line in lines:
        try:
            rows.append(_row(line))
        except (ValueError, TypeError, RecursionError) as error:
            walk.feed(map(as_read, rows))
            raise damage(walk, walk.position + 1, walk.bad or f"the line cannot be read: {error}") from None
        if len(rows) == _BATCH:
            yield rows
            rows = []
    yield rows


def _row(line: bytes) -> Row:
    fields, data = verifier.read_line(line)
    fields["data_hash"], fields["hash"] = bytes.fromhex(fields["data_hash"]), bytes.fromhex(fields["hash"])
    erased = fields["salt"] is None and data == ERASED
    fields["salt"] = None if erased else bytes.fromhex(fields["salt"])
    return Row(**fields, data=None if erased else data)


@contextlib.contextmanager
def _files(bundle: Path) -> Iterator[tuple[Any, IO[bytes]]]:
    """The contents of `log.json`, and the lines of the events; from a tar by name only, without unpacking."""
    with contextlib.ExitStack() as stack:
        try:
            if bundle.is_dir():
                about = json.loads((bundle / ABOUT).read_bytes())
                lines: IO[bytes] = stack.enter_context((bundle / EVENTS).open("rb"))
            else:
                tar = stack.enter_context(tarfile.open(bundle, "r:"))
                about = json.loads(stack.enter_context(_member(tar, ABOUT)).read())
                lines = stack.enter_context(_member(tar, EVENTS))
        except (OSError, ValueError, tarfile.TarError, RecursionError) as error:
            if not bundle.exists():
                raise NotFoundError(f"there is no {bundle}") from None
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise LogDamagedError(f"{bundle} is not an export of a log: {why}") from None
        yield about, lines


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    for member in tar:
        if member.isfile() and member.name.rpartition("/")[2] == name and (file := tar.extractfile(member)) is not None:
            return file
    raise ValueError(f"it does not contain {name}")
