"""The service's half of a child process: start it, read its messages, end it with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import anyio
import msgspec
from anyio.abc import Process

from ..errors import SAEDownloadError, from_code
from ..ports import OnProgress, Progress
from .protocol import MESSAGE, Done, Failed, Fetched, Job, Listed, Message

_COMMAND = (sys.executable, "-P", "-m", "sae_actor.hub.child")
_PACKAGES = str(Path(__file__).resolve().parents[2])
"""Where this package is imported from: the child gets the same, and never its working folder."""
_OURS = "SAE_ACTOR_"
_FORCED = {
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
}
_MAX_LINE = 256 << 20


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: the hub's settings and the machine's, none of the service's (above all not its
    token)."""
    kept = {name: value for name, value in environment.items() if not name.startswith(_OURS) and name != "HF_DEBUG"}
    paths = [_PACKAGES, *filter(None, [environment.get("PYTHONPATH")])]
    return {**kept, **_FORCED, "PYTHONPATH": os.pathsep.join(paths)}


async def run_job(
    job: Job, environment: Mapping[str, str], heard: OnProgress, silence_seconds: float
) -> Done | Listed | Fetched:
    """Run one job in a process of its own; its progress goes to `heard`.

    Raises the child's error, or `SAEDownloadError` if it died (`process`) or was silent for
    `silence_seconds` (`stalled`). However this ends, the process and all it started have ended too.
    """
    with anyio.CancelScope(shield=True):  # a cancel in the middle of the start would lose sight of the process
        process = await anyio.open_process(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(environment),
            cwd="/",
            start_new_session=True,
        )
    try:
        assert process.stdin is not None
        with contextlib.suppress(anyio.BrokenResourceError):  # it has died already: reading reports that
            await process.stdin.send(msgspec.json.encode(job) + b"\n")
        async for message in _messages(process, silence_seconds):
            if isinstance(message, Progress):
                heard(message)
            elif isinstance(message, Failed):
                raise from_code(message.code, message.detail, **message.fields)
            else:
                return message
        status = await process.wait()
        raise SAEDownloadError(f"The download process ended with status {status}", reason="process")
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process)


async def _messages(process: Process, silence_seconds: float) -> AsyncIterator[Message]:
    assert process.stdout is not None
    pending = bytearray()
    while True:
        try:
            with anyio.fail_after(silence_seconds):
                pending += await process.stdout.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return
        except TimeoutError:
            raise SAEDownloadError("The download process makes no progress", reason="stalled") from None
        *lines, rest = pending.split(b"\n")
        pending = bytearray(rest)
        if len(pending) > _MAX_LINE:
            raise SAEDownloadError("The list of the repository is too long", reason="too_many_files")
        for line in lines:
            yield MESSAGE.decode(line)


async def _end(process: Process) -> None:
    """Kill the whole process group immediately; nothing in it has state to save."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    await process.aclose()
