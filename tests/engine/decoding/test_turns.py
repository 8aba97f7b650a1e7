"""Whose the next step is: many texts, long prompts and texts that run alone, none of which starves another."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sae_actor.domain.refs import Edit
from sae_actor.engine import TorchEngine
from sae_actor.engine.decoding.turns import PromptShares, Turns
from sae_actor.ports import GenerationRequest
from tests.engine.asking import active, finished, request, scoring
from tests.engine.tiny import save_tiny_model

from .batches import POINT, ids, running
from .test_prefill import ROWS, Row
from .test_prefill import TOKENS as PIECES

pytestmark = pytest.mark.anyio

TOKENS = 32
"""Of prompts in a step."""


class Text:
    """One that runs alone."""

    def __init__(self, share: str, *, scored: bool, halfway: bool) -> None:
        plain = replace(request((1,)), share=share)
        self.request: GenerationRequest = scoring((1, 2)) if scored else plain
        self.beside = self
        self.halfway = halfway


TEXTS = st.builds(Text, st.sampled_from("abc"), scored=st.booleans(), halfway=st.booleans())


@given(st.lists(TEXTS, min_size=1, max_size=8), st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_nobody_waits_for_more_than_one_of_each_other_share(texts: list[Text], steps: list[tuple[bool, bool]]) -> None:
    """And whoever shares a step waits for one that runs alone, and the other way round. What is owed to a prompt is
    settled by the step after it."""
    turns, waits = Turns(), defaultdict[object, int](int)
    shares = {text.request.scoring is None and text.request.share for text in texts}
    was: list[bool] = []
    for others, owes in steps:
        # A prompt is left out by a shared step alone, and has the one after it.
        owed = owes and was[-1:] == [False] and was[-2:] != [False, False]
        found = turns.alone(texts, others=others, owed=owed)
        was.append(found is not None)
        if found is None:
            assert others
            assert was[-3:] != [False] * 3
            continue
        assert not (others and was[-2:] == [True, True])
        had = found.request.scoring is None and found.request.share
        for share in shares:
            waits[share] = 0 if share == had else waits[share] + 1
            assert waits[share] < len(shares)


@given(st.lists(ROWS, min_size=1, max_size=31), st.integers(0, 6))
def test_one_token_runs_in_its_third_step_whatever_is_before_it(before: list[Row], steps: int) -> None:
    """And next to one that always wants to run alone."""
    turns, shares, alone = Turns(), PromptShares(), [Text("a", scored=False, halfway=False)]
    rows, waited = dict[int, Row](enumerate(before)), 0
    while waited < 3:
        if steps == 0:
            rows[-1] = Row(1, 0)
        waited, steps = waited + (-1 in rows), steps - 1
        if turns.alone(alone, others=bool(rows), owed=shares.owes) is not None:
            continue
        for name, had in shares.share([row.prompt(name) for name, row in rows.items()], PIECES).items():
            assert isinstance(name, int)
            rows[name].begun, rows[name].left = True, rows[name].left - had
            if name == -1:
                return
        rows = {name: row for name, row in rows.items() if row.left}
    raise AssertionError("it has waited for three steps")


async def test_a_full_load_of_everything(tmp_path: Path, tiny_sae: Path) -> None:
    """Long prompts whose first piece takes a whole step, a list of prompts, texts that run alone: a text of one token
    has it in its third step, and one that runs alone waits for two shared steps, and for one of the other principal's.
    Each is what it is alone."""
    model = save_tiny_model(tmp_path / "model", max_position_embeddings=1024)
    edits = active(5, Edit(feature=3, strength=6.0, exclude=("sink",)))
    long = [request(ids(300 + n, n), edits, tokens=6, window=TOKENS) for n in range(8)]
    listed = [request(ids(20 + n, n), tokens=3) for n in range(12)]
    greedy = [replace(request(ids(9, n), tokens=4, deterministic=True), share="greedy") for n in range(4)]
    modest = replace(request(ids(9, 9), tokens=4, deterministic=True), share="modest")
    short = [request(ids(1, n), tokens=1) for n in range(6)]
    everything = [*long, *listed, *greedy, modest, *short]
    async with running(model, (5, POINT), sae=tiny_sae, prompt_tokens=TOKENS, max_running=32) as engine:
        alone = [await finished(engine, each) for each in everything]
        steps = ran(engine)
        asking = [asyncio.create_task(finished(engine, each)) for each in everything[: -len(short)]]
        while not steps:
            await asyncio.sleep(0)
        # One after another, so that each comes at another moment of the load, and before most long ones have begun.
        one_by_one = [await finished(engine, each) for each in short]
        together = [*(await asyncio.gather(*asking)), *one_by_one]
    assert [end.token_ids for end in together] == [end.token_ids for end in alone]
    for each in short:
        there = [step for step in steps if each in step]
        assert next(at for at, step in enumerate(there) if step[each]) < 3
    turns = [at for at, step in enumerate(steps) if step.get(modest)]
    assert len(turns) == 4, "its prompt in one piece, and three tokens more"
    assert all(later - earlier <= 6 for earlier, later in pairwise(turns))


def ran(engine: TorchEngine) -> list[dict[GenerationRequest, bool]]:
    """The engine's steps from now on: of each text that was there, whether it ran."""
    scheduler, steps = engine._device.scheduler, list[dict[GenerationRequest, bool]]()
    step = scheduler.step

    def watched() -> None:
        texts = list(scheduler._running)
        before = {text: text.at for text in texts}
        step()
        steps.append({text.request: text.at > before[text] for text in texts})

    scheduler.step = watched  # type: ignore[method-assign]  # seen on its own thread
    return steps
