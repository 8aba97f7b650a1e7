"""Whole texts on small models: equal to transformers' `generate`, bare and under plain hooks; how texts end."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sae_actor.domain.refs import ActiveSae, Edit, HookKind, HookPoint
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.engine.decoding import generation
from sae_actor.engine.decoding.attention import ScheduledTokens
from sae_actor.engine.decoding.generation import Generation, Item
from sae_actor.engine.decoding.kv_cache import CacheSize, KVCache
from sae_actor.errors import BadRequestError, DeviceLostError
from sae_actor.ports import Finished, GenerationStream
from sae_actor.sae import load_sae
from sae_actor.sae.steering import Steering
from tests.engine.asking import active, apart, attach, detach, finished, load, no_progress, read, request
from tests.engine.tiny import CONFIGS, END, save_tiny_model, save_tiny_sae, tiny_model

pytestmark = pytest.mark.anyio

IDS = tuple(range(40, 62))  # longer than the sliding windows of 16
STRENGTH = 40.0


def network(engine: TorchEngine) -> Any:
    assert engine._model is not None
    return engine._model.network


def hooks_on(model: nn.Module) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


def generated(model: Any, tokens: int) -> tuple[int, ...]:
    fed = torch.tensor([IDS])
    mask = torch.ones_like(fed)
    out = model.generate(fed, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return tuple(out[0, len(IDS) :].tolist())


PLACES: dict[str, dict[HookKind, Callable[[Any], nn.Module]]] = {
    "llama": {"resid_post": lambda m: m.model.layers[1], "mlp_out": lambda m: m.model.layers[1].mlp},
    "gemma2": {"attn_out": lambda m: m.model.layers[1].post_attention_layernorm},
    "gemma3_text": {"resid_post": lambda m: m.model.layers[1]},
    "gpt2": {"attn_out": lambda m: m.transformer.h[1].attn},
    "gpt_neox": {"resid_post": lambda m: m.gpt_neox.layers[1]},
}


@pytest.mark.parametrize("model_type", list(CONFIGS))
async def test_token_ids_are_those_of_generate(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", model_type)
    sae_folder = save_tiny_sae(tmp_path / "sae")
    row = load_sae(sae_folder).W_dec[3]
    engine = TorchEngine(EngineSettings(threads=1))
    await engine.load_model(load(str(folder)), no_progress)
    reference = tiny_model(model_type)
    wanted = generated(reference, 20)
    assert (await finished(engine, request(IDS, tokens=20))).token_ids == wanted
    for at, (kind, module) in enumerate(PLACES.get(model_type, {}).items(), start=5):
        point = HookPoint(kind, 1)
        await engine.attach(attach(at, point=point), str(sae_folder))
        steered = await finished(
            engine, request(IDS, active(at, Edit(feature=3, strength=STRENGTH, exclude=()), point=point), tokens=20)
        )
        handle = module(reference).register_forward_hook(
            lambda _, __, out: out + STRENGTH * row if isinstance(out, Tensor) else (out[0] + STRENGTH * row, *out[1:])
        )
        assert steered.token_ids == generated(reference, 20) != wanted
        handle.remove()
    assert (await finished(engine, request(IDS, tokens=20))).token_ids == wanted
    await engine.close()


async def test_hooks_are_on_the_model_for_steps_that_need_them_alone(engine: TorchEngine, tiny_sae: Path) -> None:
    model = network(engine)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda *_: seen.append(hooks_on(model) - 1))
    await engine.attach(attach(5), str(tiny_sae))
    steered, bare = active(5, Edit(feature=3, strength=STRENGTH, exclude=())), active(5)
    await finished(engine, request(IDS, tokens=3))
    await finished(engine, request(IDS, bare, tokens=3))
    assert seen == [0] * 6
    seen.clear()
    await finished(engine, request(IDS, steered, tokens=3))
    assert seen == [1] * 3
    seen.clear()
    both = [engine.generate(request(IDS, sae, tokens=n)) for sae, n in ((steered, 5), (bare, 20))]
    await asyncio.gather(*(read(stream) for stream in both))
    assert seen.count(1) == 5  # steps of both, or of the steered one alone
    assert 15 <= seen.count(0) <= 20
    assert seen != sorted(seen), "they took turns"
    assert hooks_on(model) == 1


async def test_several_saes_at_several_hook_points(engine: TorchEngine, tiny_sae: Path) -> None:
    points = (HookPoint("resid_post", 0), HookPoint("mlp_out", 1), HookPoint("attn_out", 2))
    for at, point in enumerate(points):
        await engine.attach(attach(at + 5, point=point), str(tiny_sae))
    saes = [active(at + 5, Edit(feature=at, strength=4.0, exclude=()), point=point) for at, point in enumerate(points)]
    end = await finished(engine, request(IDS, *saes, tokens=12))
    reference: Any = tiny_model("llama")
    rows = load_sae(tiny_sae).W_dec
    layers = reference.model.layers
    for module, row in ((layers[0], rows[0]), (layers[1].mlp, rows[1]), (layers[2].self_attn, rows[2])):
        module.register_forward_hook(
            lambda _, __, out, row=row: out + 4.0 * row if isinstance(out, Tensor) else (out[0] + 4.0 * row, *out[1:])
        )
    assert end.token_ids == generated(reference, 12)
    assert end.receipt.tokens_edited == len(IDS) + 11


async def test_the_end_token_ends_and_counts(engine: TorchEngine) -> None:
    assert engine._model is not None
    assert engine._model.tokenizer.end_ids == {END}
    whole = await finished(engine, request(IDS, tokens=20))
    last = whole.token_ids[5]
    engine._model.tokenizer.end_ids = frozenset({last})
    end = await finished(engine, request(IDS, tokens=20))
    first = whole.token_ids.index(last)
    assert (end.reason, end.token_ids) == ("stop", whole.token_ids[: first + 1])
    assert end.receipt.tokens_generated == first + 1


async def test_a_deadline_ends_the_text(engine: TorchEngine) -> None:
    end = await finished(engine, request(IDS, tokens=100, deadline=0.0))
    assert (end.reason, end.error_code) == ("error", "not_ready")
    assert (await finished(engine, request(IDS))).reason == "length"


async def test_the_deadline_counts_from_the_first_step(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """And waiting has the same limit of its own."""
    now, stream, made = 100.0, GenerationStream(), deque[tuple[GenerationStream, Item]]()
    monkeypatch.setattr(generation, "time", SimpleNamespace(monotonic=lambda: now))

    def waiting() -> Generation:
        asked = request(IDS, tokens=100, deadline=10.0)
        assert engine._model is not None
        return Generation(asked, engine._model.tokenizer, CacheSize(1), lambda _: None, streams=(stream,), made=made)

    text, other = waiting(), waiting()
    now += 9.0
    assert not text.due
    text.begin(KVCache)
    now += 9.0
    assert (text.due, other.due) == (False, True)
    other.end_due()
    now += 2.0
    assert text.due
    text.end_due()
    assert [each.error_detail for _, each in made if isinstance(each, Finished)] == [
        "the generation did not begin within 10 seconds",
        "the generation did not finish within 10 seconds",
    ]


@pytest.mark.parametrize(
    "changes",
    [{"tokens": -1}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 1.5}, {"stop": ("",)}],
)
async def test_requests_that_no_model_could_run(engine: TorchEngine, changes: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        engine.generate(request(IDS, **changes))
    for ids in ((), (260,), (-1,), (1,) * 129):
        with pytest.raises(BadRequestError):
            engine.generate(request(ids))


# — faults —


@pytest.mark.parametrize("after", [0, 3])
async def test_an_sae_that_fails_ends_its_own_text_alone(
    engine: TorchEngine, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    await engine.attach(attach(5), str(tiny_sae))
    bare = await finished(engine, request(IDS, tokens=20))
    before = logits(engine)
    whole, calls = Steering.difference, []

    def failing(self: Steering, *rows: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise RuntimeError("secret")
        return whole(self, *rows)

    monkeypatch.setattr(Steering, "difference", failing)
    edit = Edit(feature=3, strength=STRENGTH, exclude=())
    streams = [engine.generate(request(IDS, *saes, tokens=20)) for saes in ((active(5, edit),), ())]
    (tokens, failed), (_, beside) = await asyncio.gather(*(read(stream) for stream in streams))
    assert (failed.reason, failed.error_code, failed.faulted) == ("error", "internal", 5)
    assert "secret" not in (failed.error_detail or "")
    assert len(tokens) == len(failed.token_ids) == after
    assert failed.receipt.tokens_edited == (0 if after == 0 else len(IDS) + after - 1)
    assert apart(beside) == apart(bare)
    assert hooks_on(network(engine)) == 0
    assert torch.equal(logits(engine), before)
    assert await engine.detach(detach(5), 0.0) > 0


async def test_edits_that_the_sae_lacks_fail_without_a_fault(engine: TorchEngine, tiny_sae: Path) -> None:
    await engine.attach(attach(5), str(tiny_sae))
    end = await finished(engine, request(IDS, active(5, Edit(feature=24, strength=1.0, exclude=()))))
    assert (end.reason, end.error_code, end.faulted) == ("error", "feature_out_of_range", None)
    elsewhere = active(5, Edit(feature=2, strength=1.0, exclude=()), point=HookPoint("resid_post", 0))
    assert (await finished(engine, request(IDS, elsewhere))).error_code == "internal"
    twice: tuple[ActiveSae, ...] = (active(5, mode="reconstruct"), active(5, mode="reconstruct"))
    assert (await finished(engine, request(IDS, *twice))).error_code == "conflicting_edits"


async def test_logits_that_are_not_finite_end_the_text(engine: TorchEngine) -> None:
    head = network(engine).lm_head
    handle = head.register_forward_hook(lambda _, __, out: out * torch.nan)
    assert (await finished(engine, request(IDS))).error_code == "internal"
    handle.remove()
    assert (await finished(engine, request(IDS))).reason == "length"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (RuntimeError("at https://hub/?token=hf_secret"), "internal"),
    ],
)
async def test_a_forward_pass_that_fails(engine: TorchEngine, raised: Exception, code: str) -> None:
    def fail(*_: Any) -> None:
        raise raised

    before = logits(engine)
    handle = network(engine).model.layers[1].register_forward_hook(fail)
    end = await finished(engine, request(IDS))
    assert (end.reason, end.error_code, end.faulted) == ("error", code, None)
    assert "secret" not in (end.error_detail or "")
    handle.remove()
    assert torch.equal(logits(engine), before)


async def test_a_lost_device_ends_everything(engine: TorchEngine, tiny_sae: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    network(engine).model.layers[1].register_forward_hook(fail)
    streams = [engine.generate(request(IDS, tokens=50)) for _ in range(8)]
    ends = await asyncio.gather(*(read(stream) for stream in streams), return_exceptions=True)
    assert all(isinstance(end, DeviceLostError) for end in ends)
    with pytest.raises(DeviceLostError):
        engine.generate(request(IDS))
    with pytest.raises(DeviceLostError):
        await engine.attach(attach(5), str(tiny_sae))


async def test_the_loop_is_free_while_the_model_runs(engine: TorchEngine) -> None:
    """Sleeping 1 ms at a time, the loop is never kept for as long as a step of the model takes."""
    never = threading.Event()

    def slow(*_: Any) -> None:
        never.wait(0.1)

    network(engine).model.layers[1].register_forward_hook(slow)
    task = asyncio.create_task(finished(engine, request(IDS, tokens=6)))
    longest, loop = 0.0, asyncio.get_running_loop()
    while not task.done():
        begin = loop.time()
        await asyncio.sleep(0.001)
        longest = max(longest, loop.time() - begin)
    assert isinstance(task.result(), Finished)
    assert longest < 0.08


def logits(engine: TorchEngine) -> Tensor:
    """Behind the prompt, of the bare model."""
    assert engine._model is not None
    decoder = engine._model.runner
    assert decoder is not None
    with torch.inference_mode():
        return decoder.logits(decoder.arrange([ScheduledTokens(decoder.open(alone=True), IDS, False)]))
