"""Whole texts are those of transformers' `generate` with its own processors: greedy and sampled, steered and not, alone
and in a batch of mixed requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sae_actor.domain.events import Sampling
from sae_actor.domain.refs import Edit
from sae_actor.engine import TorchEngine
from sae_actor.engine.decoding.sampler import gumbel
from tests.engine.asking import active, attach, finished, read, request

pytestmark = pytest.mark.anyio

FEATURE, STRENGTH = 3, 18.0
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0, "repetition_penalty": 1.6},
    {"temperature": 0.0, "frequency_penalty": 1.5, "presence_penalty": 0.8},
    {"temperature": 0.0, "repetition_penalty": 0.8, "logit_bias": ((70, 3.0), (71, -100.0)), "presence_penalty": -0.3},
    {"temperature": 1.3, "top_k": 12},
    {"temperature": 0.8, "min_p": 0.1, "frequency_penalty": 0.9},
    {
        "temperature": 1.1,
        "top_k": 40,
        "top_p": 0.8,
        "min_p": 0.05,
        "repetition_penalty": 1.3,
        "logit_bias": ((9, 2.0),),
    },
    {"temperature": 0.0},
    {"temperature": 1.0, "top_p": 0.9},
]


class Counting(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Frequency and presence penalties, which transformers lacks."""

    def __init__(self, sampling: Sampling, prompt: int) -> None:
        self._sampling, self._prompt = sampling, prompt

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        counts = torch.bincount(ids[0, self._prompt :], minlength=scores.shape[1])
        by = counts * self._sampling.frequency_penalty + (counts > 0) * self._sampling.presence_penalty
        return scores - by


class Drawing(LogitsProcessor):  # type: ignore[misc]
    """The noise of the seed, so that the best token is a drawn one."""

    def __init__(self, seed: int, prompt: int) -> None:
        self._seed, self._prompt = seed, prompt

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        return scores.double() + gumbel(self._seed, ids.shape[1] - self._prompt, scores.shape[1])


def processors(sampling: Sampling, prompt: int) -> LogitsProcessorList:
    found: list[Any] = []
    if sampling.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    found.append(Counting(sampling, prompt))
    if sampling.logit_bias:
        found.append(SequenceBiasLogitsProcessor({(token,): by for token, by in sampling.logit_bias}))
    if sampling.temperature:
        found.append(TemperatureLogitsWarper(sampling.temperature))
        found += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        found += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
        found += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
        found.append(Drawing(sampling.seed, prompt))
    return LogitsProcessorList(found)


@pytest.mark.parametrize("steered", [False, True])
async def test_texts_are_those_of_transformers(
    engine: TorchEngine, tiny_llama: Path, tiny_sae: Path, steered: bool
) -> None:
    await engine.attach(attach(7), str(tiny_sae))
    ids = (await engine.tokenize("hello, hello, hello world")).token_ids
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    model.generation_config.eos_token_id = None
    direction = load_file(tiny_sae / "sae_weights.safetensors")["W_dec"][FEATURE]
    saes = (active(7, Edit(feature=FEATURE, strength=STRENGTH, exclude=())),) if steered else ()
    if steered:
        model.model.layers[1].register_forward_hook(lambda *of: of[2] + STRENGTH * direction)
    asks = [request(ids, *saes, tokens=24, seed=n, ignore_eos=True, **each) for n, each in enumerate(SETTINGS)]
    together = await asyncio.gather(*(read(engine.generate(each)) for each in asks))
    for asked, (tokens, end) in zip(asks, together, strict=True):
        with torch.no_grad():
            wanted = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False,
                max_new_tokens=24,
                pad_token_id=0,
                logits_processor=processors(asked.sampling, len(ids)),
            )[0, len(ids) :].tolist()
        assert list(end.token_ids) == wanted, asked.sampling
        assert [token.id for token in tokens] == wanted, "streamed"
        assert (await finished(engine, asked)).token_ids == end.token_ids, "alone"
    assert len({end.token_ids for _, end in together}) == len(asks)
