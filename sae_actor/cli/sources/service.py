"""The log of a running service, over HTTP."""

from __future__ import annotations

import asyncio
import os
import shutil
import tarfile
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import msgspec

from ...client import Client
from ...domain.events import Event
from ...errors import BadRequestError, LogDamagedError, LogUnusableError
from ...eventlog.audit.contents import ABOUT, NAMES, head_in
from ...ports import Head, Verification
from ...ports.durability import fsync_path
from .source import Moment, View

PAGE = 1000
"""Answers of one tag that are asked for at a time."""


class ServiceSource:
    """What a service says of its log. Its answers are those of the offline commands once it has stopped."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def verify(self, heads: Sequence[Head] = (), *, full: bool = True) -> Verification:
        noted = [f"{head.position}:{head.hash}" for head in heads]
        return msgspec.convert(self._client.verify(full=full, heads=noted), Verification)

    async def events(self, after: int, types: Sequence[str] | None) -> AsyncGenerator[Event, None]:
        for line in self._client.log_lines(after, types or ()):
            yield msgspec.json.decode(line, type=Event)

    async def state(self, at: Moment) -> View:
        return self._client.state(at)

    async def diff(self, before: Moment, after: Moment) -> View:
        return self._client.diff(0 if before is None else before, after)

    async def explain(self, of: str) -> AsyncGenerator[View, None]:
        after = 0
        while True:
            page = self._client.explain(of, after=after, limit=PAGE)
            for view in page["generations"]:
                yield {**view, "log": page["log"]}
                after = view["position"]
            if len(page["generations"]) < PAGE:
                return

    async def export(self, to: Path) -> Head:
        return await asyncio.to_thread(self._export, to)

    def _export(self, to: Path) -> Head:
        if to.exists() or to.is_symlink():
            raise BadRequestError(f"{to} exists already; an export overwrites nothing")
        part = to.with_name(f"{to.name}.part")
        try:
            try:
                part.parent.mkdir(parents=True, exist_ok=True)
                with part.open("xb") as file:
                    for piece in self._client.export():
                        file.write(piece)
                fsync_path(part)
                head = self._unpacked(part, None if to.suffix == ".tar" else to)
                if to.suffix == ".tar":
                    os.replace(part, to)
                fsync_path(to.parent)
            finally:
                part.unlink(missing_ok=True)
        except FileExistsError:
            raise LogUnusableError(f"{part} is in the way; move it, or export to another place") from None
        except OSError as error:
            raise LogUnusableError(f"{to} cannot be written: {error.strerror}") from None
        return head

    def _unpacked(self, tar_file: Path, to: Path | None) -> Head:
        """The head that an export names, and with `to` its files, each by its own name and nothing else."""
        fresh = None if to is None else to.with_name(f"{to.name}.new")
        try:
            if fresh is not None:
                fresh.mkdir()
            about = b""
            with tarfile.open(tar_file, "r:") as tar:
                for member in tar:
                    name, content = member.name.rpartition("/")[2], tar.extractfile(member)
                    if content is None or name not in NAMES:
                        continue
                    if name == ABOUT:
                        about = content.read()
                        content.seek(0)
                    if fresh is not None:
                        with (fresh / name).open("xb") as file:
                            shutil.copyfileobj(content, file)
                        fsync_path(fresh / name)
            head = head_in(about)
            if fresh is not None and to is not None:
                os.replace(fresh, to)
        except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
            raise LogDamagedError(f"the service did not send an export: {error}") from None
        finally:
            if fresh is not None:
                shutil.rmtree(fresh, ignore_errors=True)
        return head
