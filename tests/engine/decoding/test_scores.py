"""Scores of given texts are those of plain forward passes: however they are run, next to whatever else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_actor.domain.refs import Edit, Positions
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.errors import BadRequestError
from sae_actor.ports import Finished, GenerationRequest
from sae_actor.sae import load_sae
from tests.engine.asking import active, attach, finished, load, no_progress, read, request, scored, scoring
from tests.engine.tiny import save_tiny_model, tiny_model

pytestmark = pytest.mark.anyio

TEXT = tuple((7 + 13 * n) % 250 for n in range(40))
TEXTS = tuple((TEXT[: size - more], TEXT[size - more : size]) for size, more in ((40, 11), (23, 0), (9, 8), (2, 1)))
EDITS: tuple[tuple[Positions, float], ...] = (("all", 4.0), ("generated", 3.0), ("last_prompt", -5.0), ("prompt", 2.0))
ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
TARGETS = (3, 200)
SAE = 5


@pytest.fixture(params=[(512, False, 32), (7, False, 32), (20, False, 3), (512, True, 32), (7, True, 2)], ids=str)
async def engine_and_model(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_sae: Path
) -> AsyncIterator[tuple[TorchEngine, Any]]:
    """Tokens of a step, whether texts run in turn, and how many at a time."""
    pieces, in_turn, running = request.param
    config: dict[str, Any] = {"rope_parameters": ROPE} if in_turn else {}
    engine = TorchEngine(EngineSettings(threads=1, prompt_tokens=pieces, max_running=running))
    folder = save_tiny_model(tmp_path / "model", **config)
    facts = await engine.load_model(load(str(folder)), no_progress)
    assert (facts.in_turn is not None) is in_turn
    await engine.attach(attach(SAE), str(tiny_sae))
    yield engine, tiny_model("llama", **config)
    await engine.close()


def plain(model: Any, row: Tensor, ids: tuple[int, ...], edit: tuple[Positions, float], *, prompt: int) -> Tensor:
    """[tokens, vocabulary]: logits with the edit at these positions."""
    positions, strength = edit
    at = torch.arange(len(ids))
    covered = {
        "all": at >= 0,
        "prompt": at < prompt,
        "generated": at >= prompt,
        "last_prompt": at == prompt - 1,
    }[str(positions)]

    def add(_: Any, __: Any, out: Any) -> Any:
        x = out if isinstance(out, Tensor) else out[0]
        new = x + strength * covered[:, None] * row
        return new if isinstance(out, Tensor) else (new, *out[1:])

    handle = model.model.layers[1].register_forward_hook(add)
    try:
        with torch.inference_mode():
            logits: Tensor = model(input_ids=torch.tensor([ids])).logits[0].float()
    finally:
        handle.remove()
    return logits


def agrees(end: Finished, asked: GenerationRequest, logits: Tensor, baseline: Tensor) -> None:
    """logits [tokens, vocabulary] under the intervention and under none."""
    assert asked.scoring is not None
    more, scores = asked.scoring.continuation, end.scores
    ids = (*asked.token_ids, *more)
    assert scores is not None
    logprobs, bare = logits.log_softmax(dim=-1), baseline.log_softmax(dim=-1)
    wanted = [float(row[token]) for row, token in zip(logprobs[:-1], ids[1:], strict=True)]
    assert [each.id for each in end.prompt] == list(ids)
    assert end.prompt[0].logprob is None
    assert [each.logprob for each in end.prompt[1:]] == pytest.approx(wanted, abs=1e-4)
    counted = slice(len(asked.token_ids) - 1 if more else 0, len(ids) - 1)
    kl = (bare.exp() * (bare - logprobs)).sum(dim=-1)[counted]
    assert scores.kl == pytest.approx(float(kl.mean()), abs=1e-4)
    assert scores.greedy is bool((logits.argmax(dim=-1)[counted] == torch.tensor(ids[1:])[counted]).all())
    if more and not asked.scoring.runs_last:
        assert (scores.targets, scores.top) == ((), ())
        return
    for target in scores.targets:
        assert target.logit == pytest.approx(float(logits[-1][target.id]), abs=1e-4)
        assert target.logprob == pytest.approx(float(logprobs[-1][target.id]), abs=1e-4)
        assert target.rank == int((logits[-1] > logits[-1][target.id]).sum()) + 1
    assert [each.id for each in scores.top] == logprobs[-1].topk(2).indices.tolist()


async def test_they_are_those_of_plain_forward_passes(
    engine_and_model: tuple[TorchEngine, Any], tiny_sae: Path
) -> None:
    engine, model = engine_and_model
    row = load_sae(tiny_sae).W_dec[3]

    def asked(ids: tuple[int, ...], more: tuple[int, ...], *, last: bool) -> list[GenerationRequest]:
        edits = [Edit(feature=3, strength=strength, positions=where, exclude=()) for where, strength in EDITS]
        steered = [scoring(ids, active(SAE, edit), more=more, last=last, targets=TARGETS, top=2) for edit in edits]
        return [*steered, scoring(ids, active(SAE), more=more, last=last, targets=TARGETS, top=2)]

    async def all_of(ids: tuple[int, ...], more: tuple[int, ...], *, last: bool) -> list[Finished]:
        bare = scoring(ids, more=more, last=last, targets=TARGETS, top=2)
        return await scored(engine, *asked(ids, more, last=last), bare, baseline=len(EDITS) + 1)

    cases = [(ids, more, last) for ids, more in TEXTS for last in (False, True)]
    text = asyncio.create_task(finished(engine, request(TEXT, tokens=20)))
    together = await asyncio.gather(*(all_of(ids, more, last=last) for ids, more, last in cases))
    for (ids, more, last), ends in zip(cases, together, strict=True):
        bare = plain(model, row, (*ids, *more), ("all", 0.0), prompt=len(ids))
        for each, end, edit in zip(asked(ids, more, last=last), ends, (*EDITS, ("all", 0.0)), strict=False):
            agrees(end, each, plain(model, row, (*ids, *more), edit, prompt=len(ids)), bare)
        assert ends[-1] == ends[-2], "without an edit it is the baseline, and computed once"
        assert ends[-1].scores is not None
        assert ends[-1].scores.kl == 0
    assert (await text).token_ids == (await finished(engine, request(TEXT, tokens=20))).token_ids
    assert engine._device.scheduler.cache_used == 0


async def test_equal_ones_are_run_once(engine: TorchEngine, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await engine.attach(attach(SAE), str(tiny_sae))
    assert engine._model is not None
    assert engine._model.runner is not None
    run: list[int] = []
    logits = engine._model.runner.logits

    def counting(arranged: Any) -> Tensor:
        run.append(arranged.rows)
        return logits(arranged)

    monkeypatch.setattr(engine._model.runner, "logits", counting)
    steered = active(SAE, Edit(feature=3, strength=2.0))
    ends = await scored(engine, *[scoring(TEXT, sae) for sae in (active(SAE), steered, steered)], scoring(TEXT),
                        baseline=3)  # fmt: skip
    assert sum(run) == 2 * len(TEXT)
    assert ends[0] == ends[3]
    assert ends[1] == ends[2]


@pytest.mark.parametrize("pieces", [512, 7])
async def test_prompts_that_nothing_is_edited_in_are_run_once(
    tiny_llama: Path, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    """Sinks of the prompt, and its scores, are known of each all the same."""
    engine = TorchEngine(EngineSettings(threads=1, prompt_tokens=pieces))
    await engine.load_model(load(str(tiny_llama)), no_progress)
    await engine.attach(attach(SAE), str(tiny_sae))
    assert engine._model is not None
    assert engine._model.runner is not None
    run: list[int] = []
    logits = engine._model.runner.logits

    def counting(arranged: Any) -> Tensor:
        run.append(arranged.rows)
        return logits(arranged)

    later = [active(SAE, Edit(feature=3, strength=s, positions="generated")) for s in (2.0, 4.0)]
    early = active(SAE, Edit(feature=3, strength=3.0, positions="prompt"))
    asked = [scoring(TEXT[:30], *saes, more=TEXT[30:]) for saes in ((later[0],), (later[1],), (early,), ())]
    alone = [(await scored(engine, each, asked[3], baseline=1))[0] for each in asked]
    monkeypatch.setattr(engine._model.runner, "logits", counting)
    ends = await scored(engine, *asked, baseline=3)
    if pieces == 512:
        assert sum(run) == 2 * 30 + 4 * (len(TEXT) - 31)
    else:
        assert sum(run) < 2.5 * 30 + 4 * (len(TEXT) - 31)
    for end, one in zip(ends, alone, strict=True):
        assert (end.edited, end.excluded, end.receipt.tokens_edited) == (
            one.edited, one.excluded, one.receipt.tokens_edited,
        )  # fmt: skip
        assert [each.logprob for each in end.prompt[1:]] == pytest.approx(
            [each.logprob for each in one.prompt[1:]], abs=1e-5
        )
        assert end.scores is not None
        assert one.scores is not None
        assert end.scores.kl == pytest.approx(one.scores.kl, abs=1e-6)
        assert end.scores.greedy is one.scores.greedy
    assert [end.edited for end in ends] == [((30, 39),), ((30, 39),), ((1, 30),), ()]
    await engine.close()


async def test_two_that_do_not_fit_side_by_side(tiny_llama: Path, tiny_sae: Path) -> None:
    engine = TorchEngine(EngineSettings(threads=1, cache_bytes=128 * 384))
    await engine.load_model(load(str(tiny_llama)), no_progress)
    await engine.attach(attach(SAE), str(tiny_sae))
    both = scoring(TEXT, active(SAE, Edit(feature=3, strength=2.0))), scoring(TEXT)
    with pytest.raises(BadRequestError, match="without a baseline"):
        engine.score(both, baseline=1)
    alone = await scored(engine, *both)
    assert [end.scores is not None for end in alone] == [True, True]
    await engine.close()


async def test_texts_come_before_texts_to_score(engine: TorchEngine) -> None:
    many = [engine.score([scoring(TEXT[:n])])[0] for n in range(2, 38) for _ in range(12)]
    end = await finished(engine, request(TEXT, tokens=2))
    assert end.reason == "length"
    assert not all(stream.finished.done() for stream in many)
    assert {(await read(stream))[1].reason for stream in many} == {"length"}
