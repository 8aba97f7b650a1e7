"""`/api/log/backup`: the data folder at one head, as a tar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from ...errors import BadRequestError, NotFoundError
from ...ports import Backup
from ..context import context
from ..disconnects import Streamed, heard
from ..operations import Query, operation
from ..types import Answer, AnyRequest

TAR = "application/x-tar"
_WORDS = {"true": True, "1": True, "false": False, "0": False}


@operation("GET", "/api/log/backup",
           "The log at one head, with `head.checkpoint`, labels, vectors, runs and a manifest of their digests, as a "
           "tar: for `sae-actor restore`. The service goes on meanwhile",
           query=(Query("saes", {"type": "boolean"}, "with the files of SAEs (default: false)"),),
           answers=((200, TAR),), errors=("disk_full", "not_found", "not_ready"), tag="log")  # fmt: skip
async def get_backup(request: AnyRequest) -> Answer:
    saes = _flag(request, "saes")
    backups = context(request).backups
    if backups is None:
        raise NotFoundError("this service keeps its log in memory: there is nothing to back up")
    async with heard(request):
        backup = await backups.begin(saes=saes)
    headers = {"content-disposition": f'attachment; filename="{backup.name}"', "cache-control": "no-store"}
    return Streamed(backup.parts(), TAR, headers, during=lambda: _held(backup))


@contextmanager
def _held(backup: Backup) -> Iterator[None]:
    with closing(backup):
        yield


def _flag(request: AnyRequest, name: str) -> bool:
    raw = request.query_params.get(name, "false")
    if raw not in _WORDS:
        raise BadRequestError(f"{name} must be true or false", param=name)
    return _WORDS[raw]
