"""The cache of a forward pass under either of its names, and a forward pass without one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.engine.decoding.recurrent import CACHE_ARGUMENTS
from sae_actor.errors import ModelLoadError
from tests.engine.asking import finished, load, no_progress, request
from tests.engine.tiny import save_tiny_model

pytestmark = pytest.mark.anyio

PROMPT = (5, 17, 99, 3, 250, 41)
OWN = transformers.LlamaForCausalLM.forward


def _run(model: Any, cache: Any, given: dict[str, Any]) -> Any:
    """The installed library's forward pass, whatever it calls its cache."""
    (name,) = [each for each in CACHE_ARGUMENTS if each in inspect.signature(OWN).parameters]
    return OWN(model, **given, **({} if cache is None else {name: cache}))


def _cache(self: Any, input_ids: Any, *, position_ids: Any = None, use_cache: Any = None, logits_to_keep: Any = 0,
           cache: Any = None) -> Any:  # fmt: skip
    given = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": use_cache}
    return _run(self, cache, {**given, "logits_to_keep": logits_to_keep})


def _past(self: Any, input_ids: Any, *, position_ids: Any = None, use_cache: Any = None, logits_to_keep: Any = 0,
          past_key_values: Any = None) -> Any:  # fmt: skip
    given = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": use_cache}
    return _run(self, past_key_values, {**given, "logits_to_keep": logits_to_keep})


def _neither(self: Any, input_ids: Any, use_cache: Any = None, logits_to_keep: Any = 0) -> Any:
    return OWN(self, input_ids=input_ids, use_cache=use_cache, logits_to_keep=logits_to_keep)


async def tokens(folder: Path) -> tuple[int, ...]:
    engine = TorchEngine(EngineSettings(threads=1))
    try:
        await engine.load_model(load(str(folder)), no_progress)
        return (await finished(engine, request(PROMPT, tokens=12))).token_ids
    finally:
        await engine.close()


@pytest.mark.parametrize("rope_type", ["default", "dynamic"])
async def test_either_name_gives_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rope_type: str
) -> None:
    """`dynamic` runs its texts in turn, over the cache; `default` compares with it when it is loaded."""
    rope = {"rope_type": rope_type, "factor": 2.0, "rope_theta": 10000.0}
    folder = save_tiny_model(tmp_path / "model", rope_parameters=rope)
    expected = await tokens(folder)
    forwards: tuple[Callable[..., Any], ...] = (_cache, _past)
    for forward in forwards:
        monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
        assert await tokens(folder) == expected
    assert len(set(expected)) > 1


async def test_a_forward_pass_without_a_cache_is_refused(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", _neither)
    with pytest.raises(ModelLoadError, match="takes no cache"):
        await tokens(tiny_llama)
