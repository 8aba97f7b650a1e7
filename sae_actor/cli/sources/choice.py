"""Which log is meant: that of a folder, or that of a running service."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ...client import DEFAULT_URL, Client, UnreachableError
from ...config import ConfigurationError, data_folder, load
from ...errors import BadRequestError, LogError, LogHeldError, LogUnusableError
from ...eventlog.inspection import missing_log
from ...eventlog.lock import FolderLock
from .folder import FolderSource
from .service import ServiceSource
from .source import LogSource


def folder_of(arguments: argparse.Namespace) -> Path:
    """The named folder, else the service's own by environment and file."""
    flags = {"data.dir": arguments.data_dir} if arguments.data_dir is not None else {}
    return data_folder(load(flags))


def stopped_folder(arguments: argparse.Namespace) -> Path:
    """A folder to be read. Raises `LogUnusableError` if it is the service's own, empty, and the demo has a log inside
    it, which was probably meant."""
    folder = folder_of(arguments)
    settings = load({})
    if arguments.data_dir is None and not settings.data.dir and missing_log(folder):
        demo = data_folder(settings, demo=True)
        if not missing_log(demo):
            raise LogUnusableError(f"there is no log in {folder}; for the demo's: --data-dir {demo}")
    return folder


@contextlib.contextmanager
def chosen(arguments: argparse.Namespace) -> Iterator[LogSource]:
    """With `--url` that service, with `--data-dir` that folder. With neither the folder of the service, if it has
    stopped; else the service itself. Where none answers, the error is that of the folder."""
    if arguments.url is not None and arguments.data_dir is not None:
        raise BadRequestError("--url and --data-dir name two logs; give one of them")
    if arguments.data_dir is not None:
        yield FolderSource(folder_of(arguments))
        return
    why: LogError | None = None
    if arguments.url is None:
        try:
            folder = stopped_folder(arguments)
            if not missing_log(folder):
                asyncio.run(_held(folder))
                yield FolderSource(folder)
                return
            why = LogUnusableError(f"there is no log in {folder}")
        except (LogHeldError, LogUnusableError) as error:
            why = error
    with service(arguments.url) as client:
        try:
            yield ServiceSource(client)
        except UnreachableError as error:
            if why is None:
                raise
            raise type(why)(f"no service answers ({error.detail}), and {why.detail}", **why.fields) from None


async def _held(folder: Path) -> None:
    """Raises `LogHeldError` if a service runs on the folder."""
    (await FolderLock.acquire(folder, shared=True)).close()


@contextlib.contextmanager
def service(url: str | None) -> Iterator[Client]:
    """The client of a service: the named one, or that of the environment. Raises `BadRequestError` for no address."""
    token = os.environ.get("SAE_ACTOR_TOKEN") or None
    if token is not None and not (token.isascii() and token.isprintable()):
        raise ConfigurationError("SAE_ACTOR_TOKEN is not a valid token: it holds characters that a header cannot carry")
    try:
        client = Client(url or os.environ.get("SAE_ACTOR_URL") or DEFAULT_URL, token)
    except ValueError as error:
        raise BadRequestError(str(error)) from None
    with client:
        yield client
