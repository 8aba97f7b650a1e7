"""A tar, made while it is sent: the digest of each member is taken as it goes by, the manifest comes last."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tarfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ..errors import LogError
from .contents import MANIFEST, ArchiveMember, ListedFile, Manifest
from .databases import copied

CHUNK = 512 * 1024
"""Read at a time: small beside what a client takes from the socket, so that others have their turn."""


async def written(members: Iterable[ArchiveMember], manifest: Manifest, aside: Path) -> AsyncIterator[bytes]:
    """The bytes of the tar. aside: a folder for the copy of a database while it is sent.

    Raises `LogError` for a file that cannot be read to the size it had; then the tar has no end.
    """
    listed: list[ListedFile] = []
    for member in members:
        if member.link is not None:
            yield _header(member.name, link=member.link)
            listed.append(ListedFile(path=member.name, link=member.link))
        elif member.through_sqlite:
            async with copied(member, aside / "database.tmp") as copy:
                async for part in _file(member._replace(path=copy), listed):
                    yield part
        else:
            async for part in _file(member, listed):
                yield part
    told = msgspec.json.format(msgspec.json.encode(replace(manifest, files=tuple(listed))), indent=1) + b"\n"
    yield _header(MANIFEST, len(told)) + told + _padding(len(told)) + bytes(2 * tarfile.BLOCKSIZE)


async def _file(member: ArchiveMember, listed: list[ListedFile]) -> AsyncIterator[bytes]:
    digest = hashlib.sha256()
    try:
        descriptor = await asyncio.to_thread(os.open, member.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LogError(f"{member.name} cannot be backed up: {error.strerror}") from None
    try:
        size = left = os.fstat(descriptor).st_size
        yield _header(member.name, size, os.fstat(descriptor).st_mtime)
        while left:
            part = await asyncio.to_thread(_read, descriptor, min(left, CHUNK), digest)
            if not part:
                raise LogError(f"{member.name} became shorter while it was backed up")
            left -= len(part)
            yield part
        yield _padding(size)
    finally:
        os.close(descriptor)
    listed.append(ListedFile(path=member.name, bytes=size, sha256=digest.hexdigest()))


def _read(descriptor: int, most: int, digest: hashlib._Hash) -> bytes:
    part = os.read(descriptor, most)
    digest.update(part)
    return part


def _header(name: str, size: int = 0, time: float = 0, link: str | None = None) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, int(time), 0o600
    if link is not None:
        info.type, info.linkname = tarfile.SYMTYPE, link
    return info.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
