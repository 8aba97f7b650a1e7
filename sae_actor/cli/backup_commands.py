"""`backup` and `restore`: the data folder as one file, and back."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ..backups.checking import checked
from ..backups.contents import Manifest, SaeAtHead
from ..backups.making import folder_backup
from ..backups.restoring import restore as restored
from ..errors import BadRequestError, LogUnusableError
from ..ports.durability import fsync_path
from . import exit_codes
from .render import answers
from .sources.choice import folder_of, service

PARTIAL = ".part"
"""Ends the name of a backup that is being written."""


def backup(arguments: argparse.Namespace) -> int:
    """From the running service, or with `--data-dir` from the folder of a stopped one. The file gets its name once all
    of it is there and verified. Raises `BadRequestError` if it exists, and the errors of either way."""
    to: Path = arguments.file
    if to.exists() or to.is_symlink():
        raise BadRequestError(f"{to} exists already; a backup overwrites nothing")
    partial = to.with_name(f"{to.name}{PARTIAL}")
    try:
        with _created(partial) as descriptor:
            if arguments.data_dir is not None:
                asyncio.run(_from_folder(Path(arguments.data_dir), descriptor, saes=arguments.saes))
            else:
                with service(arguments.url) as client, client.backup(saes=arguments.saes) as parts:
                    for part in parts:
                        _write(descriptor, part)
        with checked(partial) as found:
            manifest = found.manifest
        fsync_path(partial)
        partial.rename(to)
        fsync_path(to.absolute().parent)
    except OSError as error:
        raise LogUnusableError(f"{to} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    view = {"file": answers.name(to.absolute()), "bytes": to.stat().st_size, **_told(manifest)}
    if arguments.json:
        print(msgspec.json.encode(view).decode())
        return exit_codes.OK
    events = answers.counted(manifest.head.position)
    print(f"{events} backed up to {answers.plain(answers.name(to))}, head {_head(manifest)}")
    _warn(manifest)
    print(f"restore them with: sae-actor restore {shlex.quote(answers.plain(answers.name(to)))} --data-dir FOLDER")
    return exit_codes.OK


def restore(arguments: argparse.Namespace) -> int:
    """Raises `LogUnusableError` unless the folder is empty or missing, `LogDamagedError` for what is not a backup."""
    folder = folder_of(arguments)
    manifest = asyncio.run(restored(arguments.file, folder))
    if arguments.json:
        print(msgspec.json.encode({"data_dir": answers.name(folder), **_told(manifest)}).decode())
        return exit_codes.OK
    events = answers.counted(manifest.head.position)
    print(f"{events} restored into {answers.plain(answers.name(folder))}, head {_head(manifest)}")
    _warn(manifest)
    for sae in _left_out(manifest):
        print(answers.plain(f"not in the backup: the files of {sae.sae_id}, from {_source(sae)}"))
    return exit_codes.OK


@contextlib.contextmanager
def _created(path: Path) -> Iterator[int]:
    """A new file for this user alone; what an earlier try left there is replaced."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _from_folder(folder: Path, descriptor: int, *, saes: bool) -> None:
    async with folder_backup(folder, saes=saes) as made:
        async for part in made.parts():
            _write(descriptor, part)


def _write(descriptor: int, part: bytes) -> None:
    view = memoryview(part)
    while view:
        view = view[os.write(descriptor, view) :]


def _told(manifest: Manifest) -> dict[str, Any]:
    """What a reader of JSON learns of it; the files are in the manifest."""
    names = ("log_id", "branch_id", "head", "witnessed", "model", "saes")
    return {"events": manifest.head.position, **{name: getattr(manifest, name) for name in names}}


def _warn(manifest: Manifest) -> None:
    if not manifest.witnessed:
        print(
            "sae-actor: warning: the log had no head.checkpoint: events missing at its end would go unnoticed",
            file=sys.stderr,
        )


def _left_out(manifest: Manifest) -> list[SaeAtHead]:
    return [sae for sae in manifest.saes if not sae.included]


def _source(sae: SaeAtHead) -> str:
    if sae.repository_id is None:
        return str(sae.path)
    return f"{sae.repository_id}{'' if sae.path is None else f' {sae.path}'} at {sae.commit or sae.revision}"


def _head(manifest: Manifest) -> str:
    return f"{manifest.head.position}:{manifest.head.hash}"
