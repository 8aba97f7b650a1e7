"""Quantised models: by bitsandbytes as they are loaded, and checkpoints of its own; what they take, and what they say.

Run where bitsandbytes is: `python -m tests.environments quantized`.
"""

from __future__ import annotations

import json
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_actor.domain.refs import HookPoint
from sae_actor.engine.model.loading import LoadedModel, fit
from sae_actor.engine.model.sizes import model_size
from sae_actor.errors import ModelLoadError
from tests.engine.damage import loaded
from tests.engine.model.test_text_parts import save_multimodal
from tests.engine.tiny import LAYERS, save_tiny_model

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")

IDS = torch.tensor([[5, 77, 200, 31]])
SCHEMES = ("nf4", "int8")
IN_A_BLOCK = 7
"""Matrices of llama's block."""


def fitted(folder: Path, **how: Any) -> LoadedModel:
    model = loaded(folder, **how)
    with torch.inference_mode():
        fit(model, 10**6)
    return model


def logits(model: LoadedModel) -> Tensor:
    """Of the model itself, before it is fitted."""
    with torch.inference_mode():
        found: Tensor = model.network(IDS).logits
    return found


def saved_quantised(folder: Path, into: Path, **settings: Any) -> Path:
    """The model as a checkpoint of bitsandbytes."""
    how: Any = transformers.BitsAndBytesConfig(**settings)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=how, device_map={"": "cpu"}, dtype=torch.bfloat16
    )
    model.save_pretrained(into)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(into)
    return into


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_hook_sees_the_compute_type_and_its_own_width(scheme: str, dtype: str, tiny_llama: Path) -> None:
    model = loaded(tiny_llama, quantization=scheme, dtype=dtype)
    assert model.facts.dtype == dtype
    plain = loaded(tiny_llama, dtype=dtype)
    assert (model.facts.widths, model.facts.without) == (plain.facts.widths, {})
    for kind, width in model.facts.widths.items():
        seen: list[Tensor] = []
        hook = model.architecture.hook(HookPoint(kind, 1))  # type: ignore[arg-type]
        handle = hook.install(seen.append)
        logits(model)
        handle.remove()
        assert [(each.shape[-1], each.dtype) for each in seen] == [(width, getattr(torch, dtype))], kind


@needs_bitsandbytes
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_computes_nearly_what_the_plain_model_does(scheme: str, tiny_llama: Path) -> None:
    model, plain = logits(loaded(tiny_llama, quantization=scheme)), logits(loaded(tiny_llama))
    worst = float((model - plain).abs().max() / plain.abs().max())
    assert 0 < worst < {"nf4": 1.0, "int8": 0.1}[scheme]


@needs_bitsandbytes
def test_four_bits_are_computed_in_the_type_of_the_model(tiny_llama: Path) -> None:
    """Whatever instructions the CPU has: the weights are decoded, and multiplied as torch does."""
    from bitsandbytes.functional import dequantize_4bit

    model = fitted(tiny_llama, quantization="nf4")
    projection: Any = model.network.get_submodule("model.layers.0.mlp.down_proj")
    x = torch.randn(3, projection.in_features, generator=torch.Generator().manual_seed(0))
    weight = dequantize_4bit(projection.weight.data, projection.weight.quant_state)
    torch.testing.assert_close(projection(x), x @ weight.T)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "gemma4_text", "qwen3_5_text"])
def test_what_is_said_is_what_is_taken(model_type: str, scheme: str, dtype: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", model_type)
    said = model_size(str(folder), "main", dtype, "cpu", scheme)
    taken = fitted(folder, dtype=dtype, quantization=scheme).facts.memory_bytes
    assert said.weights_bytes == pytest.approx(taken, rel=0.05)
    assert said.quantization == scheme
    assert said.weights_bytes < model_size(str(folder), "main", dtype, "cpu").weights_bytes


@needs_bitsandbytes
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_record_says_how(scheme: str, tiny_llama: Path) -> None:
    facts = fitted(tiny_llama, quantization=scheme).facts
    assert facts.quantization == scheme
    assert facts.environment["quantization"] == {
        "scheme": scheme, "method": "bitsandbytes", "of_checkpoint": False, "widened": False,
        "matrices": LAYERS * IN_A_BLOCK,
    }  # fmt: skip
    assert facts.environment["bitsandbytes"] == metadata.version("bitsandbytes")
    # 8 bit looks for outliers among all rows of a step: its texts run apart.
    assert facts.environment["batching"] is (scheme == "nf4")


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("settings", "scheme"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, "nf4"),
        ({"load_in_4bit": True}, "fp4"),
        ({"load_in_8bit": True}, "int8"),
    ],
)
def test_a_checkpoint_of_bitsandbytes(settings: dict[str, Any], scheme: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = saved_quantised(tiny_llama, tmp_path / "quantised", **settings)
    model = loaded(folder)
    assert (model.facts.quantization, model.facts.dtype) == (scheme, "float32")
    assert model.facts.environment["quantization"]["of_checkpoint"] is True
    plain = logits(loaded(tiny_llama))
    assert float((logits(model) - plain).abs().max() / plain.abs().max()) < 1.0
    said = model_size(str(folder), "main", "auto", "cpu")
    assert said.weights_bytes == pytest.approx(model.facts.memory_bytes, rel=0.05)
    assert said.quantization == scheme
    with pytest.raises(ModelLoadError, match=r"quantised already \(bitsandbytes\): leave quantization out"):
        loaded(folder, quantization="int8")


@needs_bitsandbytes
def test_the_text_part_of_a_multimodal_model(tmp_path: Path) -> None:
    save_multimodal(tmp_path / "model", "gemma3", "gemma3_text", old_names=True)
    facts = fitted(tmp_path / "model", quantization="nf4").facts
    assert facts.environment["quantization"]["matrices"] == LAYERS * IN_A_BLOCK


@needs_bitsandbytes
def test_the_text_part_of_a_multimodal_checkpoint_that_is_quantised(tmp_path: Path) -> None:
    """Its settings stand outside of `text_config`, and what is not to be quantised has the whole model's names."""
    text = save_tiny_model(tmp_path / "text", "gemma3_text")
    quantised = saved_quantised(text, tmp_path / "quantised", load_in_4bit=True, bnb_4bit_quant_type="nf4")
    tensors = {f"language_model.{name}": each for name, each in load_file(quantised / "model.safetensors").items()}
    tensors["vision_tower.embeddings.weight"] = torch.zeros(3, 3)
    save_file(tensors, quantised / "model.safetensors", {"format": "pt"})
    config = json.loads((quantised / "config.json").read_text())
    own = {**config.pop("quantization_config"), "llm_int8_skip_modules": ["vision_tower", "lm_head"]}
    whole = {"model_type": "gemma3", "text_config": config, "quantization_config": own, "eos_token_id": 256}
    (quantised / "config.json").write_text(json.dumps(whole))
    model = loaded(quantised)
    assert (model.facts.model_type, model.facts.quantization) == ("gemma3_text", "nf4")
    assert model.facts.environment["quantization"]["matrices"] == LAYERS * IN_A_BLOCK
    plain = logits(loaded(text, quantization="nf4"))
    assert float((logits(model) - plain).abs().max() / plain.abs().max()) < 0.1
    said = model_size(str(quantised), "main", "auto", "cpu")
    assert said.weights_bytes == pytest.approx(model.facts.memory_bytes, rel=0.05)


@needs_bitsandbytes
def test_a_model_that_would_stay_plain_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "falcon")
    with pytest.raises(ModelLoadError, match="bitsandbytes quantises no matrix of FalconForCausalLM"):
        loaded(folder, quantization="nf4")
    with pytest.raises(ModelLoadError, match="bitsandbytes quantises no matrix of FalconForCausalLM"):
        model_size(str(folder), "main", "auto", "cpu", "nf4")


@needs_bitsandbytes
def test_matrices_in_int8_read_half_precision(tiny_llama: Path) -> None:
    model = fitted(tiny_llama, quantization="int8")
    assert model.written_in(HookPoint("mlp_act", 1)) == torch.float16
    assert model.written_in(HookPoint("resid_post", 1)) == torch.float32


# — without bitsandbytes —


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantised by gptq cannot be loaded here: that takes optimum and gptq"),
        ({"quant_method": "awq", "bits": 4}, r"takes gptqmodel \(pip install gptqmodel\)"),
        ({"quant_method": "hqq"}, r"takes hqq \(pip install hqq\) and a CUDA device"),
        ({"quant_method": "fbgemm_fp8"}, "and a CUDA device"),
        ({"quant_method": "sinq"}, "quantised by sinq, which is not supported; supported are bitsandbytes, gptq, awq"),
        ({"bits": 4}, "quantised by None, which is not supported"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("inside", [None, "text_config"])
def test_what_nothing_here_reads(own: dict[str, Any], told: str, inside: str | None, copied: Path) -> None:
    path = copied / "config.json"
    config = json.loads(path.read_text())
    changed = {"quantization_config": own} if inside is None else {inside: {"quantization_config": own}}
    path.write_text(json.dumps({**config, **changed}))
    for ask in (lambda: loaded(copied), lambda: model_size(str(copied), "main", "auto", "cpu")):
        with pytest.raises(ModelLoadError, match=told):
            ask()


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_the_library(scheme: str, tiny_llama: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"bitsandbytes \(pip install 'sae-actor\[quantized\]'\)"):
        loaded(tiny_llama, quantization=scheme)


def save_fp8(folder: Path, into: Path, block: int) -> dict[str, Tensor]:
    """The model's matrices in float8, with a scale for each block; what they stand for, by name."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tensors: dict[str, Tensor] = dict(model.state_dict())
    meant: dict[str, Tensor] = {}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    for name, weight in list(tensors.items()):
        if not name.endswith("_proj.weight"):
            continue
        rows, columns = (-(-size // block) for size in weight.shape)
        scale = torch.rand(rows, columns, generator=torch.Generator().manual_seed(len(meant))) / 100 + 0.01
        whole = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)[: weight.shape[0], : weight.shape[1]]
        tensors[name] = (weight.float() / whole).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
        meant[name] = tensors[name].float() * whole
    into.mkdir()
    save_file({name: each.contiguous() for name, each in tensors.items()}, into / "model.safetensors", {"format": "pt"})
    model.config.quantization_config = {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block],
    }  # fmt: skip
    model.config.save_pretrained(into)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(into)
    return meant


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float8_is_widened_on_a_cpu(dtype: str, tiny_llama: Path, tmp_path: Path) -> None:
    meant = save_fp8(tiny_llama, tmp_path / "model", block=16)
    model = fitted(tmp_path / "model", dtype=dtype)
    held = dict(model.network.named_parameters())
    for name, weight in meant.items():
        torch.testing.assert_close(held[name].float(), weight, rtol=1e-2, atol=1e-3)
        assert held[name].dtype == getattr(torch, dtype)
    assert model.facts.environment["quantization"] == {
        "scheme": "fp8", "method": "fp8", "of_checkpoint": True, "widened": True,
    }  # fmt: skip
    said = model_size(str(tmp_path / "model"), "main", dtype, "cpu")
    assert said.weights_bytes == pytest.approx(model.facts.memory_bytes, rel=0.05)
