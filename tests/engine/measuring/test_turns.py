"""A text that comes while texts are measured: its first step is the next one, and the measurement comes to the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import LlamaModel

from sae_actor.ports import TextGroup
from tests.engine.asking import read, request

from .test_evaluation import ready

pytestmark = pytest.mark.anyio

RANDOM = Random(1)
GROUP = TextGroup(attach_position=7, texts=tuple(tuple(RANDOM.randrange(256) for _ in range(20)) for _ in range(64)))
PROMPT = (5, 6, 7)
TOKENS = 6


class Passes:
    """The forward passes of a model, by their number of tokens; the one that is told to waits in its middle."""

    def __init__(self, waits_at: int) -> None:
        self.tokens: list[int] = []
        self.waiting, self.go_on = threading.Event(), threading.Event()
        self._waits_at = waits_at

    @contextmanager
    def watched(self) -> Iterator[None]:
        handle = torch.nn.modules.module.register_module_forward_hook(self._seen)
        try:
            yield
        finally:
            self.go_on.set()
            handle.remove()

    def _seen(self, module: torch.nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, LlamaModel):
            self.tokens.append(output.last_hidden_state[..., 0].numel())
            if len(self.tokens) == self._waits_at:
                self.waiting.set()
                assert self.go_on.wait(60)


@pytest.mark.parametrize("measured", ["evaluate", "read_group"])
async def test_a_text_goes_first(tiny_llama: Path, tiny_sae: Path, measured: str) -> None:
    engine = await ready(tiny_llama, tiny_sae, prompt_tokens=100)
    whole = await getattr(engine, measured)(GROUP)
    alone, _ = await read(engine.generate(request(PROMPT, tokens=TOKENS)))
    passes = Passes(waits_at=4)
    with passes.watched():
        running = asyncio.ensure_future(getattr(engine, measured)(GROUP))
        await asyncio.to_thread(passes.waiting.wait, 60)
        stream = engine.generate(request(PROMPT, tokens=TOKENS))
        passes.go_on.set()
        tokens, _ = await read(stream)
        assert await running == whole
    await engine.close()
    assert [each.id for each in tokens] == [each.id for each in alone]
    assert passes.tokens[:4] == [100] * 4
    assert passes.tokens[4 : 4 + TOKENS] == [len(PROMPT)] + [1] * (TOKENS - 1), "nothing is measured in between"
    assert sum(passes.tokens[4 + TOKENS :]) > 0, "the rest of the group came after it"
