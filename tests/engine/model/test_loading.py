"""Loading models: from a folder, from the hub, and what is wrong with them."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing

from sae_actor import __version__
from sae_actor.engine import TorchEngine
from sae_actor.errors import DiskFullError, ModelLoadError, ModelNotFoundError, OutOfMemoryError, SAEError
from tests.engine.asking import finished, load, no_progress, request
from tests.engine.damage import loaded, pickle_weights, set_in_config
from tests.engine.tiny import save_tiny_model

TOKEN = "hf_tokencanary161803398"


# — a folder —


def test_facts(tiny_llama: Path) -> None:
    model = loaded(tiny_llama)
    facts, reference = model.facts, transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert (facts.model_id, facts.revision, facts.commit) == (str(tiny_llama), "main", None)
    assert (facts.model_type, facts.dtype, facts.device) == ("llama", "float32", "cpu")
    assert (facts.num_layers, facts.hidden_size, facts.context_length) == (3, 32, 128)
    assert facts.widths["attn_z"] == 32
    assert facts.widths["mlp_act"] == 48
    assert facts.memory_bytes >= sum(p.nbytes for p in reference.parameters())
    environment = facts.environment
    assert environment["sae_actor"] == __version__
    assert environment["torch"] == torch.__version__
    assert environment["attention"] == "sdpa"
    files = environment["model_files"]
    assert set(files) == {path.name for path in tiny_llama.iterdir()}
    weights = (tiny_llama / "model.safetensors").read_bytes()
    assert files["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert json.loads(json.dumps(environment)) == environment
    assert not any(p.requires_grad for p in model.network.parameters())
    assert not model.network.training


@pytest.mark.parametrize(
    ("bos", "template", "adds"),
    [
        ("<|user|>", "<|user|> $A", True),
        ("<|user|>", "$A <|user|>", False),
        ("<|user|>", None, False),
        (None, None, False),
    ],
    ids=["before", "behind", "known, not added", "none"],
)
def test_whether_the_tokenizer_adds_bos(bos: str | None, template: str | None, adds: bool, copied: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(copied)
    if bos is not None:
        tokenizer.bos_token = bos
    if template is not None:
        tokens = [("<|user|>", tokenizer.convert_tokens_to_ids("<|user|>"))]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=tokens)
    tokenizer.save_pretrained(copied)
    assert loaded(copied).facts.adds_bos is adds


def test_a_folder_has_no_revision(tiny_llama: Path) -> None:
    """A record of one would say what nobody looked at."""
    with pytest.raises(ModelLoadError, match="no revision v2"):
        loaded(tiny_llama, revision="v2")


def test_tied_weights_count_once(tmp_path: Path) -> None:
    apart = loaded(save_tiny_model(tmp_path / "a")).facts.memory_bytes
    tied = loaded(save_tiny_model(tmp_path / "b", tie_word_embeddings=True)).facts.memory_bytes
    assert apart - tied == 260 * 32 * 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_types(tiny_llama: Path, dtype: str) -> None:
    model = loaded(tiny_llama, dtype=dtype)
    assert model.facts.dtype == dtype
    assert model.network.dtype == getattr(torch, dtype)


def test_a_checkpoint_in_half_precision_is_float32_on_the_cpu(tmp_path: Path) -> None:
    half: Any = transformers.AutoModelForCausalLM.from_pretrained(
        save_tiny_model(tmp_path / "model"), dtype=torch.bfloat16
    )
    half.save_pretrained(tmp_path / "model")
    assert loaded(tmp_path / "model").facts.dtype == "float32"


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return rewrite


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _index(content: Any) -> Callable[[Path], None]:
    return lambda folder: [(folder / "model.safetensors.index.json").write_text(json.dumps(content))].clear()


@pytest.mark.filterwarnings("ignore")  # what transformers says to broken files is its own affair
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without("config.json"), "neither a folder with a model"),
        (_without("model.safetensors"), "not complete"),
        (pickle_weights, "not complete"),
        (_without("tokenizer.json"), "loading the model failed"),
        (set_in_config(model_type="bert"), "of type bert are not supported; supported are bloom,"),
        (set_in_config(model_type=["x"]), "not supported"),
        (set_in_config(num_hidden_layers=4), "lack model.layers.3"),
        (set_in_config(intermediate_size=47), "have another shape|failed"),
        (_weights(lambda w: w.pop("model.layers.1.mlp.up_proj.weight")), "lack model.layers.1.mlp.up_proj.weight"),
        (_cut, "failed"),
        (lambda folder: (folder / "config.json").write_text("[1, 2]"), "not a JSON object"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a JSON object"),
        (_index({"weight_map": {"a": "../../etc/passwd"}}), "does not name the files"),
        (_index({"weight_map": {"a": "pytorch_model.bin"}}), "does not name the files"),
        (_index({"weight_map": {"a": "part-1.safetensors"}}), "part-1.safetensors is missing"),
    ],
)
def test_damaged_models_are_refused(copied: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(copied)
    with pytest.raises((ModelLoadError, ModelNotFoundError), match=says):
        loaded(copied)


def test_code_of_a_model_is_not_run(copied: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (copied / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
    set_in_config(auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"})(copied)
    loaded(copied)
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["/nowhere/at/all", "./no-folder", "a b", "x/../y", "https://hub/x", "org//x", "a/b/c"]
)
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        loaded(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(tiny_llama: Path) -> None:
    with pytest.raises(ModelLoadError, match="no device cuda:3"):
        loaded(tiny_llama, device="cuda:3")


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemoryError),
        (MemoryError(), OutOfMemoryError),
        (OSError(28, "No space left on device"), DiskFullError),
        (ValueError(f"https://hub/?token={TOKEN}"), ModelLoadError),
    ],
)
def test_what_goes_wrong_is_told_in_our_words(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, becomes: type[SAEError]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(becomes) as caught:
        loaded(tiny_llama)
    assert TOKEN not in caught.value.detail
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.anyio
async def test_a_failed_move_to_the_device_leaves_nothing(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks: list[weakref.ref[Any]] = []

    def full(self: torch.nn.Module, *_: Any) -> None:
        networks.append(weakref.ref(self))
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = TorchEngine()
    with monkeypatch.context() as patch:
        patch.setattr(transformers.LlamaForCausalLM, "to", full)
        with pytest.raises(OutOfMemoryError) as caught:
            await engine.load_model(load(str(tiny_llama)), no_progress)
        gc.collect()
        assert [reference() for reference in networks] == [None]  # though the error is still held
        assert caught.value
    await engine.load_model(load(str(tiny_llama), at=2), no_progress)
    assert (await finished(engine, request((1, 2)))).reason == "length"
    await engine.close()


@pytest.mark.anyio
async def test_dropped_models_are_collected(tiny_llama: Path) -> None:
    engine = TorchEngine()
    for at in range(3):
        await engine.load_model(load(str(tiny_llama), at=at + 1), no_progress)
        assert engine._model is not None
        network = weakref.ref(engine._model.network)
        await finished(engine, request((1, 2)))
    await engine.close()
    gc.collect()
    assert network() is None


@pytest.mark.anyio
async def test_closing_twice_and_during_a_load(tiny_llama: Path) -> None:
    engine = TorchEngine()
    task = asyncio.create_task(engine.load_model(load(str(tiny_llama)), no_progress))
    await asyncio.sleep(0)
    task.cancel()
    await engine.close()
    await engine.close()
    with pytest.raises(asyncio.CancelledError):
        await task
