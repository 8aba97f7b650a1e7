"""An SAE of every format on a model of the right family, all the way: files, hub, engine, text.

What is hooked is compared with what transformers computes when nothing of the package is attached, at modules that
are named here once more; what is written, with the plain formulas of the families and of the edits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from msgspec import structs
from torch import Tensor
from transformers import AutoModelForCausalLM

from sae_actor.domain.effects import ImportEffect
from sae_actor.domain.refs import ActiveSae, Edit, HookPoint
from sae_actor.domain.state import SaeLocation
from sae_actor.domain.weights import import_id_of
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.formats import FORMATS
from sae_actor.ports import HubSae, Watch
from sae_actor.sae import SAE, load_sae
from tests.engine.asking import active, attach, load, no_progress, read, request
from tests.engine.model.plain import _LLAMA, AT, BLOCKS, CONFIGS, IDS, LAYER, Plain, after_block
from tests.engine.tiny import save_tiny_model
from tests.fakes.hub_server import HubServer
from tests.formats import families, scopes
from tests.formats.dictionaries import dictionary
from tests.formats.written import D_IN, D_SAE, Array, Written, plain, put, weights
from tests.hub.conftest import Told, download, located, real_hub
from tests.sae.reference import PlainSae

pytestmark = pytest.mark.anyio
_LLAMA |= {"num_key_value_heads": 1, "head_dim": D_IN // 2}
# — SAEs —

Make = Callable[[Path], Written]
PLACE = HookPoint("resid_pre", 6)


def _lens(config: dict[str, Any], point: HookPoint = PLACE) -> Make:
    """SAELens, of which the family's formulas are in its own tests: here the plain ones of `reference`."""

    def lens(root: Path) -> Written:
        w = weights(40)
        kept = ["W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if "jumprelu" in config["architecture"] else [])]
        put(root / "sae", "sae_weights.safetensors", {name: w[name] for name in kept})
        settings = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "model_name": "gpt2-small", **config}
        put(root / "sae", "cfg.json", config=settings)
        sae = PlainSae(load_sae(root / "sae").recipe, {name: w[name] for name in kept})
        return Written(
            root / "sae",
            "sae_lens",
            config["architecture"],
            lambda x: np.stack([sae.encode(row) for row in x]),
            lambda x: np.stack([sae.decode(sae.encode(row), row) for row in x]),
            point,
        )

    return lens


def _at(name: str, model: str, point: HookPoint, **config: Any) -> Make:
    """A plain SAE that was trained at the hook of that name in block 6."""
    place = {"hook_name": name, "hook_layer": 6, "apply_b_dec_to_input": True, "model_name": model}
    return _lens({"architecture": "standard", **place, "model_from_pretrained_kwargs": config}, point)


FLAT = {"hook_name": "blocks.6.hook_resid_pre", "hook_layer": 6, "apply_b_dec_to_input": True}
CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
TOPK = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 6}, "normalize_activations": "layer_norm"}


def sae_lens_centred(root: Path) -> Written:
    """Its formula written out: encode x − mean(x), and put the mean back."""
    made = _lens({"architecture": "standard", **FLAT, **CENTRED})(root)
    p = plain(weights(40))

    def encode(x: Array) -> Array:
        return np.asarray(np.maximum((x - x.mean(1, keepdims=True) - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 0))

    def forward(x: Array) -> Array:
        return np.asarray(encode(x) @ p["W_dec"] + p["b_dec"] + x.mean(1, keepdims=True))

    return replace(made, encode=encode, forward=forward)


CASES: dict[str, tuple[str, Make]] = {
    "sae_lens standard": ("gpt2", _lens({"architecture": "standard", **FLAT, "model_from_pretrained_kwargs": {}})),
    "sae_lens centred": ("gpt2", sae_lens_centred),
    "sae_lens topk layer norm": ("gpt2", _lens({"architecture": "standard", **FLAT, **TOPK})),
    "sae_lens before the gain of an RMS norm": (
        "llama",
        _at("blocks.6.ln2.hook_normalized", "Llama-3.2-1B", HookPoint("mlp_in", 6, "gain")),
    ),
    "sae_lens before the gain of an RMS norm of Gemma": (
        "gemma3_text",
        _at("blocks.6.ln2.hook_normalized", "gemma-3-1b-pt", HookPoint("mlp_in", 6, "gain")),
    ),
    "sae_lens before the gain and bias of a LayerNorm": (
        "gpt2",
        _at("blocks.6.ln2.hook_normalized", "gpt2", HookPoint("mlp_in", 6, "gain"), fold_ln=True),
    ),
    "sae_lens on the way to the MLP": (
        "llama",
        _at("blocks.6.hook_mlp_in", "Llama-3.2-1B", HookPoint("mlp_in", 6, "norm")),
    ),
    "sae_lens before the norm after the MLP": (
        "gemma2",
        _at("blocks.6.mlp.hook_out", "gemma-2-2b", HookPoint("mlp_out", 6, "norm")),
    ),
    "sae_lens before the norm after attention": (
        "gemma3_text",
        _at("blocks.6.attn.hook_out", "gemma-3-1b-pt", HookPoint("attn_out", 6, "norm")),
    ),
    "sae_lens jumprelu": ("mistral", _lens({"architecture": "jumprelu", **FLAT, "model_name": "mistral-7b"})),
    "gemma_scope": ("gemma2", scopes.gemma_scope),
    "gemma_scope embedding": ("gemma2", scopes.gemma_scope_embedding),
    "gemma_scope transcoder": ("gemma2", scopes.gemma_scope_transcoder),
    "gemma_scope_2": ("gemma3_text", scopes.gemma_scope_2),
    "gemma_scope_2 affine": ("gemma3_text", scopes.gemma_scope_2_affine),
    "llama_scope transcoder": ("llama", scopes.llama_scope_transcoder),
    "llama_scope_r1": ("llama", scopes.llama_scope_r1),
    "sparsify skip transcoder": ("llama", families.sparsify_skip_transcoder),
    "sparsify groupmax": ("llama", families.sparsify_groupmax),
    "dictionary_learning batch topk": ("gpt_neox", lambda root: dictionary(root, "BatchTopKSAE")),
    "dictionary_learning gated": ("gpt_neox", lambda root: dictionary(root, "GatedAutoEncoder")),
    "openai topk": ("gpt2", families.openai_topk),
    "openai relu": ("gpt2", families.openai_relu_tied),
    "goodfire": ("llama", families.goodfire),
    "deepseek_r1": ("llama", families.deepseek_r1),
    "kissane": ("gpt2", families.kissane),
    "qwen_scope": ("qwen3", families.qwen_scope),
    "layer_file": ("qwen3", families.layer_file),
}


def test_no_format_is_left_out() -> None:
    # Vectors have no encoder to read with; tests/api/test_real_vectors.py attaches them.
    assert {name.split()[0] for name in CASES} | {"vectors"} == {each.name for each in FORMATS}


# — together —


def named(point: HookPoint) -> str:
    return point.kind if point.before is None else f"{point.kind} before {point.before}"


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny_model(root / name, name, **config) for name, config in CONFIGS.items()}


@dataclass
class Attached:
    """A case on its model, in an engine."""

    case: Written
    engine: TorchEngine
    plain: Plain
    sae: SAE
    read_at: HookPoint
    write_at: HookPoint
    found: HubSae
    seen: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seen = self.plain.run(named(self.read_at), named(self.write_at))

    @property
    def x_read(self) -> Tensor:
        return self.seen[named(self.read_at)]

    @property
    def x(self) -> Tensor:
        return self.seen[named(self.write_at)]

    def described(self, *edits: Edit, mode: Literal["steer", "reconstruct"] = "steer") -> ActiveSae:
        out = None if self.write_at == self.read_at else self.write_at
        return active(AT, *edits, point=self.read_at, out=out, mode=mode)

    async def stream_after(self, described: ActiveSae) -> Tensor:
        """What the block behind receives in the prompt's pass of a text, [n, hidden]."""
        model = self.engine._model
        assert model is not None
        found: dict[str, Tensor] = {}
        with after_block(model.network.get_submodule(BLOCKS.get(model.facts.model_type, "model.layers")), found):
            _, end = await read(self.engine.generate(request(IDS, described, tokens=1)))
        assert end.reason == "length", end.error_detail
        return found["after"]


async def brought(case: Written, tmp_path: Path, server: HubServer) -> tuple[HubSae, SaeLocation, str]:
    """The case as the hub hands it to the engine: imported, or out of a repository of several."""
    hub = real_hub(server, tmp_path)
    several = case.path.is_file() and len({*case.path.parent.glob(f"*{case.path.suffix}")}) > 1
    if several:
        repository = case.repository_id or "org/set"
        files = {path.name: path.read_bytes() for path in case.path.parent.iterdir()}
        server.publish(repository, files)
        effect = download(repository, case.path.name)
        found = await hub.download(effect, Told())
        location = located(effect, found)
    else:
        path = await hub.resolve_import(str(case.path.parent if case.path.is_file() else case.path))
        found = await hub.import_(ImportEffect(request_position=1, sae_id=import_id_of(path), path=path))
        location = SaeLocation(
            sae_id=import_id_of(path),
            source="import",
            repository_id=None,
            commit=None,
            path=path,
            files=found.files,
        )
    where = await hub.locate(location)
    await hub.close()
    return found, location, where


@pytest.fixture(params=list(CASES))
async def attached(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    model_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Attached]:
    for module in (families, scopes):
        monkeypatch.setattr(module, "D_OUT", D_IN)  # a transcoder writes to a stream as wide as the one it reads
    model_type, make = CASES[request.param]
    case = make(tmp_path / "imports")
    with HubServer() as server:
        found, location, where = await brought(case, tmp_path, server)
    assert (found.sae.format, found.sae.hook_point) == (case.format, case.hook_point)
    assert case.hook_point is not None
    read_at = structs.replace(case.hook_point, layer=LAYER)
    out = None if case.hook_point_out is None else structs.replace(case.hook_point_out, layer=LAYER)
    network = AutoModelForCausalLM.from_pretrained(model_folders[model_type]).eval()
    engine = TorchEngine(EngineSettings(threads=1))
    await engine.load_model(load(str(model_folders[model_type])), no_progress)
    effect = attach(AT, point=read_at, out=out)
    told = await engine.attach(
        type(effect)(
            request_position=AT,
            sae_id=effect.sae_id,
            weights_sha256=found.weights_sha256,
            location=location,
            sae=found.sae,
            hook_point=read_at,
            hook_point_out=out,
            mode="steer",
            dtype="float32",
        ),
        where,
    )
    assert told.dtype == "float32"
    sae = engine._residents[AT].sae
    yield Attached(case, engine, Plain(model_type, network), sae, read_at, out or read_at, found)
    await engine.close()


def close(got: Tensor, wanted: Any) -> None:
    torch.testing.assert_close(got.double(), torch.as_tensor(wanted).double(), rtol=2e-4, atol=2e-4)


async def test_attached(attached: Attached) -> None:
    """One after the other, since files, hub and engine cost more than what is looked at."""
    states = {"resid_pre": f"before.{LAYER}", "resid_post": f"before.{LAYER + 1}"}
    if attached.read_at.kind in states:  # transformers' own word for what the place is
        assert torch.equal(attached.x_read, attached.seen[states[attached.read_at.kind]])
    await _it_reads_what_the_model_computes(attached)
    await _it_writes_the_difference(attached)
    await _it_puts_its_reconstruction_in_place(attached)


async def _it_reads_what_the_model_computes(attached: Attached) -> None:
    watch = Watch(sae=attached.described(), top_k=D_SAE)
    tokens, _ = await read(attached.engine.generate(request(IDS, tokens=1, watched=(watch,))))
    told = torch.zeros(len(IDS), D_SAE)
    for at, row in enumerate(tokens[0].activations[0].rows):
        for each in row:
            told[at, each.feature] = each.activation
    expected = attached.case.encode(attached.x_read.double().numpy())
    assert (expected != 0).any()
    close(told, expected)


async def _it_writes_the_difference(attached: Attached) -> None:
    acts = attached.case.encode(attached.x_read.double().numpy())
    often, *_, seldom = np.argsort(-(acts != 0).sum(axis=0))
    edits = [
        Edit(int(seldom), 3.0, exclude=()),
        Edit(int(often), 0.5, "scale", exclude=()),
        Edit(int(often) // 2, -0.5, "project", exclude=()),
    ]
    formula = PlainSae(attached.sae.recipe, attached.sae.weights)
    rows = zip(attached.x.double().numpy(), attached.x_read.double().numpy(), strict=True)
    delta = torch.tensor(np.stack([formula.difference(x, edits, x_read) for x, x_read in rows])).float()
    new = attached.x + delta
    wanted = attached.plain.run(write=(named(attached.write_at), new))["after"]
    assert not torch.allclose(wanted, attached.seen["after"], atol=1e-2)
    close(await attached.stream_after(attached.described(*edits)), wanted)


async def _it_puts_its_reconstruction_in_place(attached: Attached) -> None:
    x, norms = attached.x, attached.x.norm(dim=1)
    made = torch.tensor(attached.case.forward(attached.x_read.double().numpy())).float()
    sinks = norms > 5 * norms.median()
    sinks[0] = True
    new = torch.where(sinks[:, None], x, made)
    wanted = attached.plain.run(write=(named(attached.write_at), new))["after"]
    assert not torch.allclose(wanted, attached.seen["after"], atol=1e-2)
    close(await attached.stream_after(attached.described(mode="reconstruct")), wanted)
