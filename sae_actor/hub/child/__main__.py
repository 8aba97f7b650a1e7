"""The process of one download (`python -m sae_actor.hub.child`): reads a job, writes messages, ends.

It dies with the service, through the kernel if possible, otherwise at the end of standard input. It imports
no torch, and reports only kind and place of an unforeseen error: exceptions of the
hub's library hold tokens and signed addresses.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable

import msgspec

from ...errors import InternalError, SAEError
from ...ports.durability import disk_failure, is_full
from ..protocol import JOB, CatalogJob, Done, Failed, Fetched, ImportJob, Job, Listed, Message, ModelJob

_PR_SET_PDEATHSIG = 1
_MEMORY_BYTES = 4 << 30
"""More than any listing or header takes: a hub that sends endless JSON ends this process, not the machine."""


def main() -> None:
    _die_with_parent()
    line = sys.stdin.buffer.readline()
    if not line:
        return
    job = JOB.decode(line)
    if os.getppid() != job.parent:
        return
    # From here on anything the libraries print goes nowhere: standard output speaks the protocol only.
    out = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    threading.Thread(target=_watch_stdin, daemon=True).start()
    # Soft: a process that converts a pickle has a limit of its own.
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _MEMORY_BYTES if most == resource.RLIM_INFINITY else min(_MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))

    def send(message: Message) -> None:
        _write(out, msgspec.json.encode(message) + b"\n")

    try:
        send(_run(job, send))
    except SAEError as error:
        send(_failed(error))
    except OSError as error:
        send(_failed(disk_failure(error, "") if is_full(error) else _unforeseen(error)))
    except Exception as error:
        send(_failed(_unforeseen(error)))
    sys.stdout.flush()
    # Not the interpreter's own end: that waits for the thread that sits on standard input.
    os._exit(0)


def _run(job: Job, send: Callable[[Message], None]) -> Done | Listed | Fetched:
    # Imported here, so that the guards of `main` are up before a library is.
    if isinstance(job, CatalogJob):
        from .catalog import listing  # noqa: PLC0415

        return listing(job, send)
    if isinstance(job, ImportJob):
        from ..imports import convert_and_register  # noqa: PLC0415

        return convert_and_register(job, send)
    if isinstance(job, ModelJob):
        from .models import ModelFetch  # noqa: PLC0415

        return ModelFetch(job, send).run()
    from .fetch import Fetch  # noqa: PLC0415

    return Fetch(job, send).run()


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _failed(error: SAEError) -> Failed:
    return Failed(code=error.code, detail=error.detail, fields=error.fields)


def _unforeseen(error: BaseException) -> InternalError:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "sae_actor" in frame.filename]
    where = f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "?"
    code = errno.errorcode.get(error.errno or 0, "") if isinstance(error, OSError) else ""
    return InternalError(f"The download ended with {type(error).__name__} {code} at {where}", reason="unforeseen")


def _die_with_parent() -> None:
    """Ask Linux to kill this process with the thread that started it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _watch_stdin() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
