"""A running service for the client and its commands: the real HTTP over a real socket, without torch."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from sae_actor.cli import main
from sae_actor.client import Client
from tests.api.conftest import Running, serving

NOWHERE = "http://127.0.0.1:1"
"""No service answers there."""


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@contextmanager
def in_thread(**settings: object) -> Iterator[Running]:
    """The service on a loop of its own, so that the blocking client can talk to it."""
    ready, stop = threading.Event(), asyncio.Event()
    found: list[Running] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def live() -> None:
        loops.append(asyncio.get_running_loop())
        async with serving(**settings) as running:  # type: ignore[arg-type]  # each test names its own
            found.append(running)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(live()))
    thread.start()
    try:
        assert ready.wait(20)
        yield found[0]
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(20)


@pytest.fixture
def service() -> Iterator[Running]:
    with in_thread() as running:
        yield running


@pytest.fixture
def client(service: Running) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SAE_ACTOR_"):
            monkeypatch.delenv(name)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`command("status", "--url", url)`: run it in this process."""

    def run(*argv: str) -> Ran:
        capsys.readouterr()
        try:
            code = main(argv)
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run
