"""Many readers of one stream in one process: `python -m tests.bench.readers URL READERS FIRST LAST`.

They are cheap on purpose (raw sockets, one regular expression), so that the service is what is measured, and yet each
checks that it gets the events FIRST to LAST once and in order. Says `ready` when all have the head of their answer,
then, when all are done, the time of the last one (the monotonic clock, which all processes share) and the bytes read.
"""

from __future__ import annotations

import re
import selectors
import sys
import time
from dataclasses import dataclass

from tests.bench.load import connected, request

ID = re.compile(rb"\nid: \w{8}\.(\d+)\r?\n")


@dataclass(slots=True)
class Reader:
    """`rest` begins with the line break before the first unfinished line."""

    rest: bytes = b""
    seen: int = 0

    def take(self, part: bytes, expected: list[bytes]) -> bool:
        """Whether everything that is expected has come. Raises where something else has."""
        held = self.rest + part
        end = held.rfind(b"\n")
        self.rest = held[max(end, 0) :]
        found = ID.findall(held, 0, end + 1)
        if found != expected[self.seen : self.seen + len(found)]:
            raise AssertionError(f"after {self.seen} events came {found[:3]}")
        self.seen += len(found)
        return self.seen == len(expected)


def main() -> None:
    url, count, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    expected = [b"%d" % position for position in range(first, last + 1)]
    selector = selectors.DefaultSelector()
    for _ in range(count):
        opened = connected(url)
        opened.sendall(request(f"/api/events?after={first - 1}", method="GET"))
        held = b""
        while b"\r\n\r\n" not in held:
            held += opened.recv(65536)
        assert held.startswith(b"HTTP/1.1 200"), held
        opened.setblocking(False)
        reader = Reader()
        reader.take(held.partition(b"\r\n\r\n")[2], expected)
        selector.register(opened, selectors.EVENT_READ, (opened, reader))
    print("ready", flush=True)
    left, taken = count, 0
    while left:
        for key, _ in selector.select(60):
            opened, reader = key.data
            part = opened.recv(1 << 18)
            assert part, f"hung up after {reader.seen} events"
            taken += len(part)
            if reader.take(part, expected):
                selector.unregister(opened)
                opened.close()
                left -= 1
    print(time.monotonic(), taken, flush=True)


if __name__ == "__main__":
    main()
