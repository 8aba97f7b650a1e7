"""A generation is a list: every reader has its own place in it, and every one hears of the end."""

from __future__ import annotations

import asyncio

import pytest

from sae_actor.domain.events import Receipt
from sae_actor.errors import DeviceLostError
from sae_actor.ports import Finished, GenerationStream, Token
from tests.actor.world import turns

pytestmark = pytest.mark.anyio

TOKENS = [Token(id=n, text=chr(97 + n)) for n in range(5)]
END = Finished(
    reason="length",
    receipt=Receipt(tokens_prompt=1, tokens_generated=5, tokens_edited=0, tokens_excluded=0, mean_relative_norm=0.0),
    token_ids=(0, 1, 2, 3, 4),
    text="abcde",
)


async def seen(stream: GenerationStream) -> list[int]:
    """The ids that a reader with a place of its own gets."""
    ids: list[int] = []
    while await stream.has(len(ids)):
        ids.append(stream.tokens[len(ids)].id)
    return ids


async def test_each_reader_has_its_own_place() -> None:
    stream = GenerationStream()
    early = asyncio.create_task(seen(stream))
    for token in TOKENS[:3]:
        stream.append(token)
        await turns(3)
    assert (await anext(stream), await anext(stream)) == (TOKENS[0], TOKENS[1])
    late = asyncio.create_task(seen(stream))
    for token in TOKENS[3:]:
        stream.append(token)
    stream.append(END)
    assert await early == await late == [0, 1, 2, 3, 4]
    assert [item async for item in stream] == [*TOKENS[2:], END]
    assert [item async for item in stream] == [], "the end comes once"


async def test_a_reader_that_leaves_takes_no_other_along() -> None:
    stream = GenerationStream()
    readers = [asyncio.create_task(seen(stream)) for _ in range(3)]
    await turns(3)
    readers[0].cancel()
    await asyncio.wait([readers[0]])
    stream.append(TOKENS[0])
    stream.append(END)
    assert [await reader for reader in readers[1:]] == [[0], [0]]


async def test_an_error_reaches_every_reader_after_the_tokens_before_it() -> None:
    stream = GenerationStream()
    reader = asyncio.create_task(seen(stream))
    stream.append(TOKENS[0])
    stream.append(DeviceLostError("gone"))
    assert await anext(stream) == TOKENS[0]
    with pytest.raises(DeviceLostError):
        await anext(stream)
    assert await reader == [0]
    assert isinstance(stream.result, DeviceLostError)


async def test_closing_ends_all_readers_and_frees_the_place_at_once() -> None:
    ended: list[GenerationStream] = []
    stream = GenerationStream(ended.append)
    reader = asyncio.create_task(seen(stream))
    stream.append(TOKENS[0])
    await turns(3)
    closing = stream.aclose()
    with pytest.raises(StopIteration):
        closing.send(None)
    assert (ended, stream.stop_requested) == ([stream], True)
    stream.append(TOKENS[1])
    stream.append(END)
    assert (await reader, stream.tokens, stream.result) == ([0], TOKENS[:1], None), "what comes later is dropped"
    assert ended == [stream], "it ends once"
