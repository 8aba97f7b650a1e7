"""Cancelling, killing, dying: rows 6, 7, 21 and 53, with real processes (each phase: `tests/process`)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil  # type: ignore[import-untyped]  # has no stubs here
import pytest
from anyio.lowlevel import checkpoint

from sae_actor.errors import SAEDownloadError
from sae_actor.hub import HuggingFaceHub
from sae_actor.hub.process import child_environment
from tests.children import child
from tests.fakes.hub_server import HubServer
from tests.hub.build import sae_files
from tests.hub.conftest import TOKEN, MakeHub, Told, download, files_below

ROOT = Path(__file__).parents[2]
MIDDLE = sae_files(d_in=256, d_sae=4096)
"""8 MB."""


def children(of: int | None = None) -> list[psutil.Process]:
    """The download processes below a process."""
    found = []
    for process in psutil.Process(of).children(recursive=True):
        try:
            if "sae_actor.hub.child" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


async def until(true: Any, seconds: float = 10.0) -> None:
    with anyio.fail_after(seconds):
        while not true():
            await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_cancel_at_any_moment_leaves_nothing(server: HubServer, hub: HuggingFaceHub, folder: Path) -> None:
    """Renames and links take no time that could be waited for: a cancel at many moments meets some of them."""
    server.publish("org/saes", MIDDLE)
    start = time.monotonic()
    await hub.download(download(), Told())
    whole = time.monotonic() - start
    await hub.discard(download())
    assert files_below(folder) == set()
    moments = random.Random(5)
    for at in range(1, 6):
        effect = download(at=at)
        with anyio.move_on_after(whole * moments.uniform(0.6, 1.05)):
            await hub.download(effect, Told())
        assert not children()
        await hub.discard(effect)
        assert files_below(folder) == set()
        assert not any(folder.parent.glob("hub/*"))


@pytest.mark.anyio
async def test_a_cancelled_try_does_not_take_away_what_was_there(server: HubServer, hub: HuggingFaceHub) -> None:
    server.publish("org/saes", MIDDLE)
    found = await hub.download(download(at=1), Told())
    server.publish("org/saes", sae_files(d_in=256, d_sae=4096, seed=3))
    server.fault("store", rate=2_000_000)
    forced = download(at=2, force=True)
    with anyio.move_on_after(1.0):
        await hub.download(forced, Told())
    await hub.discard(forced)
    asked = len(server.asked("store"))
    server.heal()
    assert (await hub.download(download(at=3, revision=str(found.commit)), Told())).files == found.files
    assert len(server.asked("store")) == asked


@pytest.mark.anyio
async def test_closing_ends_every_process(server: HubServer, hub: HuggingFaceHub) -> None:
    server.publish("org/saes", MIDDLE)
    server.fault("any", hang=30.0)
    ended: list[str] = []

    async def run() -> None:
        with pytest.raises(SAEDownloadError) as refused:
            await hub.download(download(), Told())
        ended.append(refused.value.fields["reason"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await until(lambda: server.asked("info"))
        await hub.close()
    assert ended == ["stopped"]
    assert not children()


@pytest.mark.anyio
@pytest.mark.parametrize(("number", "reason"), [(signal.SIGKILL, "process"), (signal.SIGSTOP, "stalled")])
async def test_a_process_that_dies_or_freezes_is_a_failed_download(
    server: HubServer, make_hub: MakeHub, number: signal.Signals, reason: str
) -> None:
    server.publish("org/saes", MIDDLE)
    server.fault("store", rate=2_000_000)
    hub = make_hub(silence_seconds=3.0)

    async def strike() -> None:
        await until(lambda: server.asked("store"))
        children()[0].send_signal(number)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(strike)
        with pytest.raises(SAEDownloadError) as refused:
            await hub.download(download(), Told())
    assert refused.value.fields["reason"] == reason
    assert not children()


@pytest.mark.anyio
async def test_the_process_has_no_secret_no_torch_and_no_file_of_the_service(
    server: HubServer, hub: HuggingFaceHub, tmp_path: Path
) -> None:
    server.publish("org/saes", MIDDLE)
    server.fault("store", rate=2_000_000)
    lock = os.open(tmp_path / "events.lock", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(lock, True)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub.download, download(), Told())
            await until(lambda: server.asked("store"))
            (child,) = children()
            assert not any(TOKEN in part for part in child.cmdline())
            assert "service-token-canary" not in child.environ().values()
            assert child.environ()["HF_HUB_DISABLE_XET"] == "1"
            assert os.getpgid(child.pid) == child.pid
            assert "events.lock" not in str(child.open_files())
            assert not any("torch" in mapped.path for mapped in child.memory_maps())
            tasks.cancel_scope.cancel()
    finally:
        os.close(lock)
    await checkpoint()


def test_the_child_sees_the_settings_of_the_hub_and_none_of_the_service() -> None:
    given = {"HF_TOKEN": "a", "HF_ENDPOINT": "b", "SAE_ACTOR_TOKEN": "c", "HF_DEBUG": "1", "HTTPS_PROXY": "d"}
    seen = child_environment(given)
    assert (seen["HF_TOKEN"], seen["HF_ENDPOINT"], seen["HTTPS_PROXY"]) == ("a", "b", "d")
    assert "SAE_ACTOR_TOKEN" not in seen
    assert "HF_DEBUG" not in seen


@contextmanager
def service(server: HubServer, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.hub.driver", str(tmp_path), server.url, "org/saes", ""]
    with child(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        yield process


def said(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    return (json.loads(line) for line in process.stdout)


def killed_at(process: subprocess.Popen[bytes], true: Any) -> None:
    """kill -9 once a message says so; the download process must not outlive it by two seconds."""
    for message in said(process):
        if true(message):
            break
    below = children(process.pid)
    assert len(below) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    gone, left = psutil.wait_procs(below, timeout=2)
    assert not [each for each in left if alive(each)], gone


def test_kill_9_at_many_moments_ends_in_one_whole_download(server: HubServer, tmp_path: Path) -> None:
    """Rows 6 and 7: also between rename, link and answer. Whatever was there is verified and used."""
    server.publish("org/saes", MIDDLE)
    moments = random.Random(11)
    for _ in range(4):
        with service(server, tmp_path) as process:
            next(said(process))
            time.sleep(moments.uniform(0.2, 0.7))
            process.send_signal(signal.SIGKILL)
            process.wait()
    with service(server, tmp_path) as last:
        *_, end = said(last)
    assert end == {"done": ["cfg.json", "sae_weights.safetensors"]}
    names = {name.removeprefix("hub/") for name in files_below(tmp_path / "data")}
    counted = {kind: sum(f"/{kind}/" in name for name in names) for kind in ("blobs", "snapshots", "refs", ".claims")}
    assert counted == {"blobs": 2, "snapshots": 2, "refs": 1, ".claims": 1}
    assert len(names) == 6


def test_a_partial_that_is_wrong_is_fetched_once_more_from_nothing(
    server: HubServer, tmp_path: Path, folder: Path
) -> None:
    """After a power cut the part on disk may hold zeros: the digest says so, and the bytes come again."""
    server.publish("org/saes", MIDDLE)
    content = MIDDLE["sae_weights.safetensors"]
    server.fault("store", rate=8_000_000)
    with service(server, tmp_path) as first:
        killed_at(first, lambda message: message.get("bytes", 0) > len(content) // 2)
    (partial,) = folder.glob("*/blobs/*.incomplete")
    partial.write_bytes(bytes(partial.stat().st_size))
    server.heal()
    with service(server, tmp_path) as second:
        *_, end = said(second)
    assert "done" in end


@pytest.mark.anyio
async def test_downloads_beyond_the_limit_wait_their_turn(server: HubServer, make_hub: MakeHub) -> None:
    server.publish("org/saes", {**sae_files("a"), **sae_files("b", seed=2)})
    hub = make_hub(max_downloads=1)
    told = {path: Told() for path in ("a", "b")}
    async with anyio.create_task_group() as tasks:
        for path, heard in told.items():
            tasks.start_soon(hub.download, download(path=path), heard)
        await until(lambda: server.asked("info"))
        assert len(children()) == 1
    assert told["b"].messages[0].reason == "other_downloads"
    assert {"waiting"} & told["b"].phases
    await hub.close()
    with pytest.raises(SAEDownloadError, match="stopping"):
        await hub.download(download(path="a", at=2), Told())
