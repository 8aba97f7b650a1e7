"""SmolLM2-135M-Instruct with the bundled SAE: what issue and README promise, on the real thing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from sae_actor.domain.refs import Edit, HookPoint
from sae_actor.engine import EngineSettings, TorchEngine
from tests.engine.asking import active, attach, detach, finished, load, no_progress, request

pytestmark = [pytest.mark.anyio, pytest.mark.model]

POINT = HookPoint("resid_post", 15)
BELIEVER = Edit(feature=584, strength=85.0, exclude=("sink",))
DAY = [{"role": "user", "content": "Tell me about your day."}]
TOKENS = 24


@pytest.fixture(scope="module")
def reference(real_model: Path) -> Any:
    """The same model as transformers loads it, for `generate`."""
    return transformers.AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()


@pytest.fixture
async def engine(real_model: Path) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(EngineSettings(threads=1))
    await engine.load_model(load(str(real_model)), no_progress)
    yield engine
    await engine.close()


def generated(reference: Any, ids: tuple[int, ...]) -> tuple[int, ...]:
    fed = torch.tensor([ids])
    out = reference.generate(
        fed, attention_mask=torch.ones_like(fed), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
    )
    return tuple(out[0, len(ids) :].tolist())


def hooks(engine: TorchEngine) -> int:
    assert engine._model is not None
    modules = engine._model.network.modules()
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in modules)


async def test_steered_and_back(engine: TorchEngine, reference: Any, demo_sae: Path) -> None:
    ids = (await engine.tokenize(DAY)).token_ids
    bare = generated(reference, ids)
    asked = request(ids, tokens=TOKENS)
    before = await finished(engine, asked)
    assert before.token_ids == bare

    await engine.attach(attach(7, point=POINT, d_in=576, d_sae=2304), str(demo_sae))
    unsteered = await finished(engine, request(ids, active(7, point=POINT), tokens=TOKENS))
    assert unsteered.token_ids == bare

    steered = await finished(engine, request(ids, active(7, BELIEVER, point=POINT), tokens=TOKENS))
    assert steered.token_ids == with_plain_hook(reference, ids, demo_sae)
    assert "God" in steered.text
    assert "God" not in before.text
    run = len(ids) + len(steered.token_ids) - 1
    assert steered.receipt.tokens_excluded >= 1
    assert steered.receipt.tokens_edited == run - steered.receipt.tokens_excluded
    assert 0.1 < steered.receipt.mean_relative_norm < 1

    assert await engine.detach(detach(7), 1.0) == 4 * (576 * 2304 * 2 + 2 * 2304 + 576)
    assert hooks(engine) == 0
    assert await finished(engine, asked) == before


def with_plain_hook(reference: Any, ids: tuple[int, ...], sae: Path) -> tuple[int, ...]:
    """`generate` with x + 85·W_dec[584] at block 15, but for sinks: written without a line of the package."""
    row = load_file(sae / "sae_weights.safetensors")["W_dec"][584].float()
    limits: list[float] = []

    def add(_: Any, __: Any, output: Any) -> Any:
        x: Tensor = output if isinstance(output, Tensor) else output[0]
        norms = x[0].norm(dim=-1)
        if not limits:
            limits.append(5 * float(norms.median()))
            norms[0] = torch.inf
        new = torch.where((norms > limits[0])[None, :, None], x, x + 85 * row)
        return new if isinstance(output, Tensor) else (new, *output[1:])

    handle = reference.model.layers[15].register_forward_hook(add)
    try:
        return generated(reference, ids)
    finally:
        handle.remove()


async def test_text_is_what_the_tokenizer_decodes(engine: TorchEngine, real_model: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(real_model)
    for prompt in ("Write three emojis: 😀", "Die häufigsten Wörter sind", "def f(x):\n    "):
        ids = (await engine.tokenize(prompt)).token_ids
        assert list(ids) == tokenizer(prompt).input_ids
        end = await finished(engine, request(ids, tokens=16, temperature=1.5, seed=4))
        assert end.text == tokenizer.decode(end.token_ids, skip_special_tokens=True)
    chat = (await engine.tokenize(DAY)).token_ids
    rendered = tokenizer.apply_chat_template(DAY, add_generation_prompt=True)
    assert list(chat) == rendered["input_ids"]
