"""Row 68: a thousand readers that come back at once."""

from __future__ import annotations

import re
import selectors
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.bench.load import load, request
from tests.bench.readers import Reader
from tests.process.test_stream_readers import STEER, attached, follow, head

from .harness import Process


@pytest.mark.timeout(90)
def test_row_68_a_thousand_readers_come_back_at_once(tmp_path: Path) -> None:
    data, count = tmp_path / "data", 1000
    with Process(data) as process:
        attached(process)
        readers = [Reader() for _ in range(count)]
        sockets = [follow(process, "?after=0") for _ in range(count)]
        raw = request("/api/commands", STEER)
        load(process.url, raw, connections=4, count=100)
        retries = drained(sockets, readers, [b"%d" % n for n in range(1, head(process) + 2)], process)
        port = process.url.rpartition(":")[2]
    assert len(set(retries)) > 100
    assert min(retries) >= 1000
    behind = [reader.seen for reader in readers]
    with Process(data, "--port", port) as process:
        process.until_ready()
        mark = re.findall(r"^id: (\w{8})\.", first_text(process), re.MULTILINE)[0]
        began = time.monotonic()
        sockets = [follow(process, "", f"Last-Event-ID: {mark}.{at}") for at in behind]
        load(process.url, raw, connections=4, count=20)
        expected = [b"%d" % n for n in range(1, head(process) + 1)]
        drained(sockets, readers, expected)
        assert time.monotonic() - began < 30
        assert {reader.seen for reader in readers} == {len(expected)}


def first_text(process: Process) -> str:
    with process.client.stream("GET", "/api/events") as answer:
        for text in answer.iter_text():
            if "\nid: " in text:
                return text
    raise AssertionError("the stream ended")


def drained(
    sockets: list[socket.socket], readers: list[Reader], expected: list[bytes], ends: Process | None = None
) -> list[int]:
    """Read until each reader has what is expected, or where the service `ends`, until it has; their last `retry`."""
    last: list[int] = []
    rest = [b""] * len(sockets)
    with selectors.DefaultSelector() as selector:
        for number, each in enumerate(sockets):
            each.setblocking(False)
            selector.register(each, selectors.EVENT_READ, number)
        if ends is not None:
            ends.signal(signal.SIGTERM)
        while selector.get_map():
            ready = selector.select(20)
            assert ready, "nothing comes any more"
            for key, _ in ready:
                number = key.data
                part = sockets[number].recv(1 << 18)
                done = readers[number].take(part, expected) if part else True
                rest[number] = (rest[number] + part)[-300:]
                if done and (ends is None or not part):
                    selector.unregister(sockets[number])
                    sockets[number].close()
    for text in rest if ends is not None else []:
        assert b"event: bye" in text
        last.append(int(re.findall(rb"retry: (\d+)\n", text)[-1]))
    return last
