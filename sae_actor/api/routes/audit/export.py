"""`/api/log/export`: the log as a tar that anyone can verify and read with a bare Python."""

from __future__ import annotations

from ....eventlog.audit.streamed import export_running
from ...context import context
from ...disconnects import Streamed, heard
from ...operations import operation
from ...types import Answer, AnyRequest


@operation("GET", "/api/log/export", "The whole log as a tar, with programs that verify and explain it",
           answers=((200, "application/x-tar"),), tag="log")  # fmt: skip
async def export_log(request: AnyRequest) -> Answer:
    """The log up to the head of now, verified before the first byte is sent, and read page by page. The folder in the
    tar has a README for the auditor."""
    async with heard(request), context(request).walks.taken():
        export = await export_running(context(request).log)
    headers = {
        "content-length": str(export.size),
        "content-disposition": f'attachment; filename="{export.name}.tar"',
        "cache-control": "no-store",
    }
    return Streamed(export.parts, media_type="application/x-tar", headers=headers)
