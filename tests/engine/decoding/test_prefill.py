"""Prompts share the tokens of a step: a short one does not wait for a long one, and no long one starves."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_actor.domain.refs import Edit, Exclusion
from sae_actor.engine import TorchEngine
from sae_actor.engine.decoding.generation import Generation
from sae_actor.engine.decoding.turns import Prompt, PromptShares
from tests.engine.asking import active, detach, finished, request
from tests.engine.tiny import save_tiny_model

from .batches import POINT, WINDOW, ids, running

pytestmark = pytest.mark.anyio

TOKENS = 16


@dataclass
class Row:
    """A prompt on its way."""

    left: int
    window: int
    """Of its first tokens, which run in one step."""
    begun: bool = False

    def prompt(self, name: int) -> Prompt:
        fewest = 1 if self.begun else min(self.left, self.window)
        return Prompt(name, self.left, fewest, max(fewest, min(self.left, TOKENS)))


def run(coming: list[list[Row]]) -> tuple[dict[int, int], dict[int, int]]:
    """(steps that each prompt waited for its first piece, longest pause of each). `coming`: in each step."""
    shares, rows = PromptShares(), dict[int, Row]()
    first, pause, since = dict[int, int](), Counter[int](), dict[int, int]()
    step = names = 0
    while step < len(coming) or rows:
        for row in coming[step] if step < len(coming) else ():
            rows[names], since[names] = row, step
            names += 1
        prompts = [row.prompt(name) for name, row in rows.items()]
        had = shares.share(prompts, TOKENS)
        assert bool(had) == bool(rows), "a step that could do something does"
        if all(each.fewest == 1 for each in prompts):
            assert sum(had.values()) == min(TOKENS, sum(each.most for each in prompts)), "no token is wasted"
        for each in prompts:
            if each.of in had:
                assert each.fewest <= had[each.of] <= each.most
        assert sum(had.values()) <= max([TOKENS, *(had[each.of] + TOKENS // 2 for each in prompts if each.of in had)])
        step += 1
        for each in prompts:
            name = each.of
            assert isinstance(name, int)
            if name not in had:
                continue
            first.setdefault(name, step - since[name])
            pause[name] = max(pause[name], step - since[name])
            since[name] = step
            rows[name].begun = True
            rows[name].left -= had[name]
            if not rows[name].left:
                del rows[name]
    return first, pause


ROWS = st.builds(Row, st.integers(1, 200), st.sampled_from([0, 0, 10, TOKENS, 40]))


@given(st.lists(st.lists(ROWS, max_size=3), max_size=12))
def test_nobody_waits_longer_than_twice_the_others(coming: list[list[Row]]) -> None:
    many = sum(map(len, coming))
    _, pause = run(coming)
    assert len(pause) == many, "each has run whole"
    assert all(steps <= 2 * many + 1 for steps in pause.values())


@given(st.lists(ROWS, min_size=1, max_size=31), st.integers(0, 6))
def test_one_token_runs_in_its_second_step_whatever_is_before_it(before: list[Row], steps: int) -> None:
    first, _ = run([before, *([[]] * steps), [Row(1, 0)]])
    assert first[len(before)] <= 2


def test_a_long_one_goes_on_while_short_ones_come_without_end() -> None:
    first, pause = run([[Row(200, 0)], *([Row(TOKENS // 2, 0)] for _ in range(100))])
    assert (first[0], pause[0]) == (1, 1)


@pytest.mark.parametrize("exclude", [(), ("sink",)])
async def test_one_token_behind_2048_starts_within_three_steps(
    tmp_path: Path, tiny_sae: Path, exclude: tuple[Exclusion, ...]
) -> None:
    """At the settings that the service has by default; and the texts are those of each alone."""
    model = save_tiny_model(tmp_path / "model", max_position_embeddings=4096)
    edits = active(5, Edit(feature=3, strength=6.0, exclude=exclude))
    long, short = request(ids(2048, 1), edits, tokens=4), request(ids(1, 2), edits, tokens=1)
    async with running(model, (5, POINT), sae=tiny_sae) as engine:
        alone = [await finished(engine, each) for each in (long, short)]
        steps = seen(engine)
        together = await asyncio.gather(*(finished(engine, each) for each in (long, long, long, short)))
    assert [end.token_ids for end in together] == [*[alone[0].token_ids] * 3, alone[1].token_ids]
    began = next(at for at, step in enumerate(steps) if 1 in step.there)
    ran = next(at for at, step in enumerate(steps) if 1 in step.ran)
    assert ran - began < 3
    assert sum(2048 in step.ran for step in steps[: ran + 1]) >= ran, "the long ones went on"


@dataclass
class Step:
    there: list[int]
    """Lengths of the prompts that run."""
    ran: list[int]
    """Of those that ran in this step."""


def seen(engine: TorchEngine) -> list[Step]:
    """The engine's steps from now on."""
    scheduler, steps = engine._device.scheduler, list[Step]()
    step = scheduler.step

    def watched() -> None:
        texts = list(scheduler._running)
        before = {text: text.at for text in texts}
        step()
        ran = [len(text.request.token_ids) for text in texts if text.at > before[text]]
        steps.append(Step([len(text.request.token_ids) for text in texts], ran))

    scheduler.step = watched  # type: ignore[method-assign]  # seen on its own thread
    return steps


@pytest.mark.parametrize("exclude", [(), ("sink",)])
@pytest.mark.parametrize("how", ["left", "detached"])
async def test_a_prompt_ends_between_two_pieces(
    tiny_llama: Path, tiny_sae: Path, exclude: tuple[Exclusion, ...], how: str
) -> None:
    asked = request(ids(60, 1), active(5, Edit(feature=3, strength=6.0, exclude=exclude)), window=WINDOW)
    loop = asyncio.get_running_loop()
    async with running(tiny_llama, (5, POINT), sae=tiny_sae, prompt_tokens=8) as engine:
        scheduler, at = engine._device.scheduler, list[int]()
        step = scheduler.step

        def watched() -> None:
            text: Generation = scheduler._running[0]
            step()
            at.append(text.at)
            if len(at) == 2 and how == "left":
                stream.stop()
            elif len(at) == 2:
                asyncio.run_coroutine_threadsafe(engine.detach(detach(5), 0.0), loop)
                while engine._device._inbox.empty():
                    time.sleep(0)

        scheduler.step = watched  # type: ignore[method-assign]
        stream = engine.generate(asked)
        end = [item async for item in stream][-1]
    assert getattr(end, "reason", None) == {"left": "cancelled", "detached": "intervention_removed"}[how]
    assert at[:2] == [8, 16]
    assert max(at) == 16, "no piece was run after that"
