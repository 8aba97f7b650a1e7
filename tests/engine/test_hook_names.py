"""Every hook of transformer_lens, by its name: the service reads what that library has there, or refuses.

On small models of the shapes of GPT-2, Llama, Gemma 2, Gemma 3 and Pythia, whose gains and biases are random. What the
library has there was written down by `hooknames/from_transformer_lens.py`, with releases 2.18.0, 3.9.0 (what differs
from both others) and 4.3.0. Where the library is installed, or `SAE_ACTOR_TRANSFORMER_LENS` names an interpreter that
has it, the last test here asks it again.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_actor.domain.placement import target
from sae_actor.domain.refs import HookPoint, SaeDescription
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.errors import SAEError
from sae_actor.formats import describe
from sae_actor.ports import Watch
from tests.engine.asking import active, attach, load, no_progress, read, request
from tests.engine.hooknames.shaped import IDS, LAYER, SHAPES, shaped
from tests.engine.tiny import tiny_tokenizer

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parent / "hooknames"
GOLDEN = {release: load_file(HERE / f"transformer_lens-{release}.safetensors") for release in (2, 3, 4)}
VALUES = {f"{release}/{key}": value for release, golden in GOLDEN.items() for key, value in golden.items()}
"""`<release>/<variant>/<model type>/<hook below the block>` → [positions, width]"""

LAYER_NORMED = ("gpt2", "gpt_neox")
MODELS = {"gpt2": "gpt2", "llama": "Llama-2-7b", "gemma2": "gemma-2-2b", "gemma3_text": "gemma-3-1b-pt",
          "gpt_neox": "pythia-70m"}  # fmt: skip
NO_HOOK_POINT = {
    "attention's input": "ln1.hook_in ln1.hook_normalized ln1.hook_out attn.hook_in hook_attn_in hook_q_input "
    "hook_k_input hook_v_input attn.hook_q_input attn.hook_k_input attn.hook_v_input",
    "inside of attention": "attn.hook_q attn.hook_k attn.hook_v attn.hook_rot_q attn.hook_rot_k attn.q.hook_out "
    "attn.k.hook_out attn.v.hook_out attn.hook_cos attn.hook_sin attn.hook_hidden_states ln1.hook_scale",
    "inside of the MLP": "mlp.hook_pre mlp.hook_pre_linear mlp.in.hook_out mlp.gate.hook_out",
    "one of two matrices that read the same": "mlp.in.hook_in mlp.gate.hook_in",
}
UNREAD = {name for names in NO_HOOK_POINT.values() for name in names.split()}
ON_STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


def said(key: str) -> Callable[[str], str]:
    return lambda text: f"{key}: {text}"


def folder_of(root: Path, name: str, model_type: str, width: int, *, folded: bool) -> Path:
    """An SAE that gives what it reads: the positive part of each number, and of each number's negative."""
    root.mkdir(parents=True, exist_ok=True)
    eye = torch.eye(width)
    both = torch.cat([eye, -eye])  # [2 width, width]
    weights = {
        "W_enc": both.T.contiguous(),
        "W_dec": both,
        "b_enc": torch.zeros(2 * width),
        "b_dec": torch.zeros(width),
    }
    save_file(weights, root / "sae_weights.safetensors")
    kwargs = {"fold_ln": True, "center_writing_weights": model_type in LAYER_NORMED} if folded else {}
    metadata = {"sae_lens_version": "6.0.0", "model_name": MODELS[model_type], "hook_name": f"blocks.{LAYER}.{name}"}
    config = {"d_in": width, "d_sae": 2 * width, "apply_b_dec_to_input": False, "architecture": "standard"}
    config["metadata"] = {**metadata, "model_from_pretrained_kwargs": kwargs}
    (root / "cfg.json").write_text(json.dumps(config))
    return root


@dataclass
class Shaped:
    """A model in the engine; each hook point is read once."""

    model_type: str
    engine: TorchEngine
    root: Path
    read: dict[tuple[HookPoint, bool], Tensor] = field(default_factory=dict)

    def place(self, name: str, width: int, *, folded: bool) -> tuple[SaeDescription, HookPoint, Path]:
        """Where the SAE of that hook goes. Raises what attaching it raises."""
        folder = folder_of(self.root / f"{name}-{folded}", name, self.model_type, width, folded=folded)
        described, model = describe(folder), self.engine._model
        assert model is not None
        return described, target(described, model.facts, None, None).hook_point, folder

    async def at(self, point: HookPoint, described: SaeDescription, folder: Path, *, centred: bool) -> Tensor:
        """[positions, width]: what an SAE there reads."""
        if (point, centred) not in self.read:
            position = 10 + len(self.read)
            effect = attach(position, point=point, d_in=described.d_in, d_sae=described.d_sae)
            await self.engine.attach(effect, str(folder))
            watch = Watch(sae=active(position, point=point), features=tuple(range(described.d_sae)))
            tokens, end = await read(self.engine.generate(request(IDS, tokens=1, watched=(watch,))))
            assert end.reason in ("length", "stop"), end.error_detail
            rows = tokens[0].activations[0].rows
            acts = torch.tensor([[each.activation for each in row] for row in rows])
            self.read[point, centred] = acts[:, : described.d_in] - acts[:, described.d_in :]
        return self.read[point, centred]


@pytest.fixture(params=list(SHAPES))
async def model(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shaped]:
    folder = tmp_path / "model"
    shaped(request.param).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    engine = TorchEngine(EngineSettings(threads=1))
    await engine.load_model(load(str(folder)), no_progress)
    yield Shaped(request.param, engine, tmp_path / "saes")
    await engine.close()


async def test_a_name_is_read_right_or_refused(model: Shaped) -> None:
    outcomes: dict[str, str] = {}
    for key, wanted in VALUES.items():
        release, variant, model_type, name = key.split("/")
        if model_type != model.model_type:
            continue
        folded = variant.endswith(".folded")
        try:
            described, point, folder = model.place(name, wanted.shape[1], folded=folded)
        except SAEError as error:
            outcomes[f"{release}/{variant}/{name}"] = error.code
            continue
        centred = folded and model_type in LAYER_NORMED and point.kind in (*ON_STREAM, "mlp_in")
        got = await model.at(point, described, folder, centred=centred)
        outcomes[f"{release}/{variant}/{name}"] = str(point)
        if folded and model_type in LAYER_NORMED and point.kind == "attn_z":
            # The value bias had been moved behind the heads, which `fold_value_biases` would have said.
            assert not torch.allclose(got, wanted, atol=1e-3), key
            continue
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=2e-4, msg=said(key))
    layer_normed = model.model_type in LAYER_NORMED
    for key, outcome in outcomes.items():
        _, variant, name = key.split("/")
        if name in UNREAD:
            assert outcome == "sae_unsupported", key
        elif name == "ln2.hook_normalized" and layer_normed and not variant.endswith("folded"):
            assert outcome == "sae_incompatible", f"{key}: releases differ"
        else:
            assert outcome not in ("sae_unsupported", "sae_incompatible"), key
    assert len(outcomes) > 100


def test_releases_differ_in_what_a_layer_norm_gives() -> None:
    """Why the name is refused there: 2.x has it after gain and bias, 3.x and 4.x before them."""
    for model_type in LAYER_NORMED:
        two, three = (GOLDEN[n][f"hooked/{model_type}/ln2.hook_normalized"] for n in (2, 3))
        four = GOLDEN[4][f"bridge/{model_type}/ln2.hook_normalized"]
        assert not torch.allclose(two, three, atol=1e-2)
        torch.testing.assert_close(three, four)
        torch.testing.assert_close(GOLDEN[2][f"hooked.folded/{model_type}/ln2.hook_normalized"], three)


def _interpreter() -> str | None:
    named = os.environ.get("SAE_ACTOR_TRANSFORMER_LENS")
    return named or (sys.executable if importlib.util.find_spec("transformer_lens") else None)


@pytest.mark.skipif(_interpreter() is None, reason="transformer_lens is not installed")
def test_the_library_still_says_so(tmp_path: Path) -> None:
    interpreter = _interpreter()
    assert interpreter is not None
    target_file = tmp_path / "now.safetensors"
    subprocess.run([interpreter, str(HERE / "from_transformer_lens.py"), str(target_file)], check=True)
    ask = "from importlib import metadata; print(metadata.version('transformer-lens'))"
    version = subprocess.run([interpreter, "-c", ask], check=True, capture_output=True, text=True).stdout
    release = int(version.split(".")[0])
    golden = {2: GOLDEN[2], 3: {**GOLDEN[2], **GOLDEN[4], **GOLDEN[3]}, 4: GOLDEN[4]}[release]
    now = load_file(target_file)
    assert set(now) == set(golden)
    for key, value in now.items():
        torch.testing.assert_close(value, golden[key], rtol=1e-3, atol=2e-4, msg=said(key))
