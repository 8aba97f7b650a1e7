"""Transcoder sets as circuit-tracer saves them: which activation, how many features, where they read and write.

The golden numbers are those of circuit-tracer 0.5.0 (`SingleLayerTranscoder` with `F.relu`, `TopK(8)`, `JumpReLU`) on
the weights that `wave` makes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]  # has no types
from torch import Tensor

from sae_actor.errors import SAEInvalidError, SAEUnsupportedError
from sae_actor.formats import describe
from sae_actor.sae import SAE, load_sae
from tests.formats.families import layer_file
from tests.formats.written import put

WIDTH, FEATURES = 6, 10


def wave(*shape: int, phase: float) -> Tensor:
    count = int(np.prod(shape))
    return torch.tensor(np.sin(np.arange(count) * 0.7 + phase).reshape(shape), dtype=torch.float32)


TENSORS = {
    "W_enc": wave(FEATURES, WIDTH, phase=0.1),
    "b_enc": wave(FEATURES, phase=0.2) - 0.9,
    "W_dec": wave(FEATURES, WIDTH, phase=0.3),
    "b_dec": wave(WIDTH, phase=0.4),
}
THRESHOLD = {"activation_function.threshold": (wave(FEATURES, phase=0.6) + 1) * 0.4}
X = wave(3, WIDTH, phase=0.5)

A, B, C, D = 1.673006534576416, 2.2765915393829346, 0.633084774017334, 1.850797414779663
GOLDEN = {
    "relu": (
        [5, 3, 3],
        [A, 0, 0.33804476261138916, B, 0, 0, C, 0, 0, D],
        [2.8030269, 6.4680257, 7.091011, 4.378983, -0.39254922, -4.9794598],
    ),
    "topk": (
        [8, 8, 8],
        [A, -2.7813854217529297, 0.33804476261138916, B, 0, -1.2897870540618896, C, 0, -1.3231335878372192, D],
        [3.8911355, 8.9928608, 9.8651028, 6.0976334, -0.53764886, -6.9200668],
    ),
    "jumprelu": (
        [4, 3, 3],
        [A, 0, 0, B, 0, 0, C, 0, 0, D],
        [2.5789137, 6.4596505, 7.3023129, 4.7105832, -0.096607216, -4.8583622],
    ),
}  # fmt: skip
CONFIG = {
    "model_name": "meta-llama/Llama-3.2-1B",
    "model_kind": "transcoder_set",
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "hook_mlp_out",
}
TOPK = {**CONFIG, "activation": "topk", "k": 8}


def written(folder: Path, config: dict[str, Any] | None, more: dict[str, Tensor] | None = None, layer: int = 2) -> Path:
    put(folder, f"layer_{layer}.safetensors", {**TENSORS, **(more or {})})
    if config is not None:
        put(folder, "config.yaml", text=yaml.safe_dump(config))
    return folder / f"layer_{layer}.safetensors"


def golden(sae: SAE, name: str) -> None:
    count, acts, output = GOLDEN[name]
    found = sae.encode(X)
    assert (found != 0).sum(dim=1).tolist() == count
    torch.testing.assert_close(found[0], torch.tensor(acts), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(X)[0], torch.tensor(output), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(found), sae(X))


@pytest.mark.parametrize(
    ("name", "config", "more"),
    [
        ("relu", None, {}),
        ("relu", CONFIG, {}),
        ("relu", {**CONFIG, "activation": "relu"}, {}),
        ("topk", TOPK, {}),
        ("topk", {**CONFIG, "activation": "topk"}, {"k": torch.tensor(8)}),
        ("topk", CONFIG, {"k": torch.tensor([8], dtype=torch.int32)}),
        ("topk", TOPK, {"k": torch.tensor(8.0)}),
        ("topk", None, {"activation_function.k": torch.tensor(8)}),
        ("jumprelu", CONFIG, THRESHOLD),
        ("jumprelu", {**CONFIG, "activation": "jumprelu"}, THRESHOLD),
        ("jumprelu", None, {"threshold": THRESHOLD["activation_function.threshold"]}),
    ],
)
def test_activations(name: str, config: dict[str, Any] | None, more: dict[str, Tensor], tmp_path: Path) -> None:
    sae = load_sae(written(tmp_path, config, more))
    golden(sae, name)
    assert sae.spec.architecture == ("jumprelu_transcoder" if name == "jumprelu" else "transcoder")
    assert sae.spec.warnings == ()


def test_eight_features_of_a_thousand_are_on(tmp_path: Path) -> None:
    """A set whose config says `activation: topk, k: 8` was run as ReLU, with about half of the features on."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "W_enc": torch.randn(1024, 32, generator=generator),
        "b_enc": torch.zeros(1024),
        "W_dec": torch.randn(1024, 32, generator=generator),
        "b_dec": torch.zeros(32),
    }
    put(tmp_path, "layer_0.safetensors", tensors)
    put(tmp_path, "config.yaml", text=yaml.safe_dump(TOPK))
    x = torch.randn(20, 32, generator=generator)
    f = load_sae(tmp_path).encode(x)
    assert (f != 0).sum(dim=1).tolist() == [8] * 20
    pre = x @ tensors["W_enc"].T
    torch.testing.assert_close(f.sort(dim=1, descending=True).values[:, :8], pre.topk(8, dim=1).values)


@pytest.mark.parametrize(
    ("config", "hook_name", "read", "write"),
    [
        (CONFIG, "blocks.2.mlp.hook_in", "mlp_in.2", "mlp_out.2"),
        ({**CONFIG, "feature_input_hook": "hook_resid_mid"}, "blocks.2.hook_resid_mid", "resid_mid.2", "mlp_out.2"),
        ({**CONFIG, "feature_output_hook": "hook_resid_post"}, "blocks.2.mlp.hook_in", "mlp_in.2", "resid_post.2"),
        (
            {**CONFIG, "feature_input_hook": "blocks.{layer}.hook_resid_pre"},
            "blocks.2.hook_resid_pre",
            "resid_pre.2",
            "mlp_out.2",
        ),
        ({**CONFIG, "feature_output_hook": "blocks.2.hook_attn_out"}, "blocks.2.mlp.hook_in", "mlp_in.2", "attn_out.2"),
        (None, "blocks.2.mlp.hook_in", "mlp_in.2", "mlp_out.2"),
    ],
)
def test_places(config: dict[str, Any] | None, hook_name: str, read: str, write: str, tmp_path: Path) -> None:
    description = describe(written(tmp_path, config))
    assert description.hook_name == hook_name
    assert (str(description.hook_point), str(description.hook_point_out)) == (read, write)
    assert description.warnings == ()
    assert description.trained_on == (None if config is None else "meta-llama/Llama-3.2-1B")


@pytest.mark.parametrize("key", ["feature_input_hook", "feature_output_hook"])
def test_places_that_are_not_known_or_not_said(key: str, tmp_path: Path) -> None:
    unknown = describe(written(tmp_path / "a", {**CONFIG, key: "hook_nowhere"}))
    point = unknown.hook_point if key == "feature_input_hook" else unknown.hook_point_out
    assert point is None
    assert any("blocks.2.hook_nowhere" in warning for warning in unknown.warnings)
    silent = describe(written(tmp_path / "b", {name: value for name, value in CONFIG.items() if name != key}))
    assert any(f"does not say {key}" in warning for warning in silent.warnings)
    with pytest.raises(SAEUnsupportedError, match=key):
        describe(written(tmp_path / "c", {**CONFIG, key: "blocks.3.hook_resid_mid"}))


@pytest.mark.parametrize(
    ("config", "more", "check"),
    [
        ({**CONFIG, "activation": "topk"}, {}, "k"),
        ({**TOPK, "k": 11}, {}, "k"),
        (TOPK, {"k": torch.tensor(4)}, "k"),
        (CONFIG, {"k": torch.tensor(2.5)}, "k"),
        ({**CONFIG, "activation": "relu"}, {"k": torch.tensor(8)}, "config.activation"),
        ({**CONFIG, "activation": "relu"}, THRESHOLD, "config.activation"),
        (TOPK, THRESHOLD, "config.activation"),
        ({**CONFIG, "activation": "jumprelu"}, {}, "config.activation"),
        ({**TOPK, "activation_fn": "relu"}, {}, "config.activation"),
        (CONFIG, {**THRESHOLD, "k": torch.tensor(8)}, "config.activation"),
        (CONFIG, {"log_thresholds": torch.zeros(FEATURES)}, "foreign_tensor"),
        (CONFIG, {**THRESHOLD, "threshold": torch.zeros(FEATURES)}, "duplicate_tensor"),
    ],
)
def test_contradictions_are_refused(
    config: dict[str, Any], more: dict[str, Tensor], check: str, tmp_path: Path
) -> None:
    with pytest.raises(SAEInvalidError) as error:
        describe(written(tmp_path, config, more))
    assert error.value.fields["check"] == check


@pytest.mark.parametrize(
    ("key", "value"),
    [("activation", "gelu"), ("activation_function", "softplus"), ("model_kind", "cross_layer_transcoder")],
)
def test_what_is_refused_by_name(key: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(SAEUnsupportedError, match=f"{key} {value}"):
        describe(written(tmp_path, {**CONFIG, key: value}))


def test_a_threshold_below_0_is_refused(tmp_path: Path) -> None:
    """circuit-tracer's JumpReLU lets h through where it is above the threshold, also where both are below 0."""
    with pytest.raises(SAEUnsupportedError, match="below 0"):
        load_sae(written(tmp_path, CONFIG, {"activation_function.threshold": torch.full((FEATURES,), -0.2)}))


def test_k_of_the_set_whose_files_lack_it(tmp_path: Path) -> None:
    with pytest.raises(SAEInvalidError, match="k is 128"):  # it is known for this one: more than the 10 features here
        describe(
            written(tmp_path, {**CONFIG, "activation": "topk"}), repository_id="facebook/crv-8b-instruct-transcoders"
        )


def test_what_the_training_run_says(tmp_path: Path) -> None:
    """Without a config.yaml; wandb puts each value into an object of its own."""
    path = written(tmp_path, None)
    said = {"d_model": WIDTH, "d_feature": FEATURES, "activation": "topk", "k": 8, "batch_size": 4096, "lr": 0.1}
    run = {key: {"desc": None, "value": value} for key, value in said.items()}
    put(tmp_path, "wandb-config.yaml", text=yaml.safe_dump({"wandb_version": 1, **run}))
    sae = load_sae(path)
    golden(sae, "topk")
    assert set(sae.spec.ignored) == {f"wandb-config.yaml: {key}" for key in ("batch_size", "lr", "wandb_version")}
    put(tmp_path, "config.yaml", text=yaml.safe_dump({**CONFIG, "activation": "relu"}))
    with pytest.raises(SAEInvalidError, match="contradict"):
        load_sae(path)


def test_a_skip_connection_beside_the_k_largest(tmp_path: Path) -> None:
    skip = wave(WIDTH, WIDTH, phase=0.7)
    sae, plain = load_sae(written(tmp_path / "a", TOPK, {"W_skip": skip})), load_sae(written(tmp_path / "b", TOPK))
    torch.testing.assert_close(sae(X), plain(X) + X @ skip.T)
    assert sae.spec.architecture == "skip_transcoder"
    both = load_sae(written(tmp_path / "c", CONFIG, {"W_skip": skip, **THRESHOLD}))
    assert both.spec.architecture == "jumprelu_skip_transcoder"


def test_an_old_set_is_read_as_before(tmp_path: Path) -> None:
    case = layer_file(tmp_path)
    assert load_sae(case.path).recipe.activation == "relu"
