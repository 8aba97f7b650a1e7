"""What only a CUDA device shows: types, measured memory, a device that is full."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sae_actor.domain.refs import Edit
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.errors import OutOfMemoryError
from tests.engine.asking import active, attach, detach, finished, load, no_progress, read, request
from tests.engine.decoding.batches import LOWER, plain, requests
from tests.engine.tiny import save_tiny_sae

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

IDS = tuple(range(40, 62))
EDIT = Edit(feature=3, strength=40.0, exclude=("sink",))


@pytest.fixture
async def engine() -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(EngineSettings())
    yield engine
    await engine.close()
    gc.collect()


async def test_text_is_that_of_generate(engine: TorchEngine, tiny_llama: Path, tiny_sae: Path) -> None:
    facts = await engine.load_model(load(str(tiny_llama), dtype="float32"), no_progress)
    assert facts.device == "cuda:0"
    assert facts.environment["device_name"]
    reference: Any = (
        transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).to("cuda").eval()
    )
    fed = torch.tensor([IDS], device="cuda")
    out = reference.generate(
        fed, attention_mask=torch.ones_like(fed), max_new_tokens=20, do_sample=False, pad_token_id=0
    )
    bare = await finished(engine, request(IDS, tokens=20))
    assert bare.token_ids == tuple(out[0, len(IDS) :].tolist())
    await engine.attach(attach(5), str(tiny_sae))
    steered = await finished(engine, request(IDS, active(5, EDIT), tokens=20))
    assert steered.token_ids != bare.token_ids
    assert steered.receipt.tokens_excluded >= 1
    sampled = [await finished(engine, request(IDS, tokens=20, temperature=1.0, top_p=0.9, seed=3)) for _ in range(2)]
    assert sampled[0] == sampled[1]
    await engine.detach(detach(5), 0.0)
    assert await finished(engine, request(IDS, tokens=20)) == bare


async def test_the_checkpoints_own_type_with_an_sae_in_float32(
    engine: TorchEngine, tiny_llama: Path, tiny_sae: Path, tmp_path: Path
) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    assert (await engine.load_model(load(str(tmp_path)), no_progress)).dtype == "bfloat16"
    assert (await engine.attach(attach(5), str(tiny_sae))).dtype == "float32"
    end = await finished(engine, request(IDS, active(5, EDIT, mode="reconstruct"), tokens=20))
    assert end.reason == "length"
    assert end.receipt.tokens_edited + end.receipt.tokens_excluded == len(IDS) + 19


async def test_memory_is_measured_and_comes_back(engine: TorchEngine, tiny_llama: Path, tmp_path: Path) -> None:
    folder = save_tiny_sae(tmp_path, d_sae=1 << 16)
    await engine.load_model(load(str(tiny_llama)), no_progress)
    await finished(engine, request(IDS))  # what the libraries allocate once for themselves
    before = torch.cuda.memory_allocated()
    for at in range(5, 15):
        attached = await engine.attach(attach(at, d_sae=1 << 16), str(folder))
        assert attached.memory_bytes <= attached.device_bytes <= 1.1 * attached.memory_bytes
        await finished(engine, request(IDS, active(at, EDIT)))
        assert await engine.detach(detach(at), 0.0) >= attached.device_bytes
        gc.collect()
        assert torch.cuda.memory_allocated() == before


async def test_a_full_device(engine: TorchEngine, tiny_llama: Path, tiny_sae: Path, tmp_path: Path) -> None:
    large = save_tiny_sae(tmp_path, d_sae=1 << 18)  # 70 MB
    await engine.load_model(load(str(tiny_llama)), no_progress)
    bare = await finished(engine, request(IDS))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (48 << 20)) / total)
    try:
        with pytest.raises(OutOfMemoryError):
            await engine.attach(attach(5, d_sae=1 << 18), str(large))
        assert torch.cuda.memory_allocated() == before
        assert await engine.detach(detach(5), 0.0) == 0
        await engine.attach(attach(6), str(tiny_sae))
        assert await finished(engine, request(IDS, active(6))) == bare
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


async def test_texts_together_are_each_alone(engine: TorchEngine, tiny_llama: Path, tiny_sae: Path) -> None:
    facts = await engine.load_model(load(str(tiny_llama), dtype="float32"), no_progress)
    assert facts.environment["batching"] is True
    await engine.attach(attach(5), str(tiny_sae))
    await engine.attach(attach(6, point=LOWER), str(tiny_sae))
    await finished(engine, request(IDS))  # what the libraries allocate once for themselves
    gc.collect()
    before = torch.cuda.memory_allocated()
    asked = [each for each in requests() if not each.deterministic]  # no float32 on a GPU sums in one order
    alone = [await read(engine.generate(each)) for each in asked]
    together = await asyncio.gather(*(read(engine.generate(each)) for each in asked))
    assert [plain(each) for each in together] == [plain(each) for each in alone]
    await engine.detach(detach(5), 0.0)
    await engine.detach(detach(6), 0.0)
    gc.collect()
    assert torch.cuda.memory_allocated() < before
