"""The parser of server-sent events: however the bytes are cut, the frames are the same."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sae_actor.client.sse import StreamEvent, frames

STREAM = (
    "retry: 2000\n\n"
    ": still here\n\n"
    'id: 0a1b2c3d.1\nevent: SaeAttached\ndata: {"x":"\u2028 \U0001f600 \x0b"}\n\n'
    "event: download_progress\r\ndata: 1\r\ndata:2\r\n\r\n"
    "data: bare\r\r"
    "id: 0a1b2c3d.2\ndata: unfinished"
).encode()
EXPECTED = [
    StreamEvent("0a1b2c3d.1", "SaeAttached", '{"x":"\u2028 \U0001f600 \x0b"}'),
    StreamEvent(None, "download_progress", "1\n2"),
    StreamEvent(None, "message", "bare"),
]


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_frames_do_not_depend_on_the_cuts(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[a:b] for a, b in pairwise(edges)]
    assert list(frames(chunks)) == EXPECTED


def test_byte_by_byte() -> None:
    assert list(frames(STREAM[i : i + 1] for i in range(len(STREAM)))) == EXPECTED
