"""Requests byte by byte over a real socket: what no HTTP library would send."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    """Names in lower case."""
    body: bytes

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name]
        assert len(found) < 2, f"the header {name} was sent more than once: {found}"
        return found[0] if found else None


def request(method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> bytes:
    """A request that asks for the connection to be closed after its answer."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "Connection: close"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def exchange(url: str, raw: bytes) -> Answer:
    """Send, and read to the end of the connection; of a stream only the head."""
    host, _, port = url.rpartition("://")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(raw)
        answer = parsed(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10))
        if str(answer.header("content-type")).startswith("text/event-stream"):
            return answer
        return answer._replace(body=await asyncio.wait_for(reader.read(), 10))
    finally:
        writer.close()


def parsed(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    return Answer(int(first.split()[1]), [(name.lower(), value.strip()) for name, _, value in pairs], body)
