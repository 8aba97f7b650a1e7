"""SAELens through its versions: keys, names, orientations, normalisations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_actor.domain.refs import HookPoint
from sae_actor.errors import SAEInvalidError, SAEUnsupportedError
from sae_actor.formats import describe
from sae_actor.sae import load_sae
from tests.formats.written import D_IN, D_OUT, D_SAE, LINEAR, Array, linear, plain, put, top, weights

OLDEST = {
    "d_in": D_IN,
    "d_sae": D_SAE,
    "hook_point": "blocks.6.hook_resid_pre",
    "hook_point_layer": 6,
    "model_name": "gpt2-small",
    "dtype": "torch.float32",
}
FLAT = {
    "architecture": "standard",
    "d_in": D_IN,
    "d_sae": D_SAE,
    "hook_name": "blocks.6.hook_resid_pre",
    "hook_layer": 6,
    "hook_head_index": None,
    "activation_fn_str": "relu",
    "activation_fn_kwargs": {},
    "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False,
    "normalize_activations": "none",
    "model_name": "gpt2-small",
    "sae_lens_training_version": "6.1.0",
    "model_from_pretrained_kwargs": {},
}
NESTED = {
    "architecture": "standard",
    "d_in": D_IN,
    "d_sae": D_SAE,
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "model_name": "ignored",
    "metadata": {
        "sae_lens_version": "6.54.12",
        "model_name": "gpt2-small",
        "hook_name": "blocks.6.hook_resid_pre",
        "hook_head_index": None,
    },
}
BASIC = ("W_enc", "b_enc", "W_dec", "b_dec")


def write(path: Path, config: dict[str, Any], tensors: dict[str, Tensor] | None = None, name: str = "cfg.json") -> Path:
    w = weights(30)
    put(path, "sae_weights.safetensors", tensors or {key: w[key] for key in BASIC})
    put(path, name, config=config)
    return path


def rows() -> tuple[Tensor, Array]:
    x = torch.randn(8, D_IN, generator=torch.Generator().manual_seed(31)) * 2 + 0.4
    return x, x.double().numpy()


def equal(got: Tensor, want: Array) -> None:
    np.testing.assert_allclose(got.double().numpy(), want, rtol=1e-4, atol=1e-4)


def relu(p: dict[str, Array], x: Array) -> Array:
    return np.maximum((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 0)


@pytest.mark.parametrize("config", [OLDEST, FLAT, NESTED], ids=["oldest", "flat", "nested"])
def test_standard_through_the_versions(config: dict[str, Any], tmp_path: Path) -> None:
    sae = load_sae(write(tmp_path, config))
    x, xs = rows()
    p = plain(weights(30))
    equal(sae.encode(x), relu(p, xs))
    equal(sae(x), relu(p, xs) @ p["W_dec"] + p["b_dec"])
    assert (sae.spec.hook_name, sae.spec.trained_on) == ("blocks.6.hook_resid_pre", "gpt2-small")
    assert sae.spec.hook_point == HookPoint("resid_pre", 6)


@pytest.mark.parametrize("d_in", ["d_in", "d_model", "input_dim"])
@pytest.mark.parametrize("name", ["cfg.json", "config.json"])
@pytest.mark.parametrize("names", [BASIC, LINEAR], ids=["math", "linear"])
def test_names_and_keys(d_in: str, name: str, names: tuple[str, ...], tmp_path: Path) -> None:
    w = weights(30)
    tensors = {key: w[key] for key in BASIC} if names == BASIC else linear(w, *LINEAR)
    config = {key: value for key, value in FLAT.items() if key != "d_in"} | {d_in: D_IN}
    sae = load_sae(write(tmp_path, config, tensors, name))
    x, xs = rows()
    equal(sae.encode(x), relu(plain(w), xs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_types(dtype: torch.dtype, tmp_path: Path) -> None:
    w = weights(30, dtype=dtype)
    path = write(tmp_path, FLAT, {key: w[key] for key in BASIC})
    assert describe(path).dtype == str(dtype).removeprefix("torch.")
    sae = load_sae(path, dtype=torch.float32)
    x, xs = rows()
    equal(sae.encode(x), relu(plain(w), xs))
    assert load_sae(path).dtype == dtype


def test_mixed_types_are_widened(tmp_path: Path) -> None:
    w = weights(30)
    tensors = {"W_enc": w["W_enc"].bfloat16(), "W_dec": w["W_dec"].half(), "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    path = write(tmp_path, FLAT, tensors)
    assert describe(path).dtype == "float32"
    assert load_sae(path).dtype == torch.float32


def test_nothing_is_subtracted_when_the_config_says_so(tmp_path: Path) -> None:
    sae = load_sae(write(tmp_path, FLAT | {"apply_b_dec_to_input": False}))
    x, xs = rows()
    p = plain(weights(30))
    equal(sae.encode(x), np.maximum(xs @ p["W_enc"] + p["b_enc"], 0))


def test_tanh_relu(tmp_path: Path) -> None:
    sae = load_sae(write(tmp_path, FLAT | {"activation_fn_str": "tanh-relu"}))
    x, xs = rows()
    equal(sae.encode(x), np.tanh(relu(plain(weights(30)), xs)))


@pytest.mark.parametrize("key", ["activation_fn_str", "activation_fn"])
def test_topk_activation_wins_over_the_architecture(key: str, tmp_path: Path) -> None:
    config = {k: v for k, v in FLAT.items() if k != "activation_fn_str"}
    sae = load_sae(write(tmp_path, config | {key: "topk", "activation_fn_kwargs": {"k": 4}}))
    x, xs = rows()
    p = plain(weights(30))
    equal(sae.encode(x), top((xs - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 4))
    assert sae.spec.architecture == "topk"


def test_rescaled_topk(tmp_path: Path) -> None:
    w = weights(30)
    w["W_dec"] = w["W_dec"] * torch.linspace(0.2, 3, D_SAE)[:, None]
    config = NESTED | {"architecture": "topk", "k": 5, "rescale_acts_by_decoder_norm": True}
    sae = load_sae(write(tmp_path, config, {key: w[key] for key in BASIC}))
    x, xs = rows()
    p = plain(w)
    norms = np.linalg.norm(p["W_dec"], axis=1)
    acts = top(((xs - p["b_dec"]) @ p["W_enc"] + p["b_enc"]) * norms, 5)
    equal(sae.encode(x), acts)
    equal(sae(x), (acts / norms) @ p["W_dec"] + p["b_dec"])
    equal(sae.decode(sae.encode(x)), (acts / norms) @ p["W_dec"] + p["b_dec"])


@pytest.mark.parametrize(
    ("config", "check"),
    [
        (NESTED | {"architecture": "topk", "k": D_SAE + 1}, "k"),
        (NESTED | {"architecture": "topk"}, "k"),  # 100 by default, more than there are
        (NESTED | {"architecture": "topk", "k": 0}, "config.k"),
        (NESTED | {"architecture": "topk", "k": 2.5}, "config.k"),
        (NESTED | {"architecture": "topk", "k": True}, "config.k"),
        (FLAT | {"activation_fn_str": "topk"}, "k"),
        (FLAT | {"architecture": "topk"}, "k"),
        (FLAT | {"d_in": "12"}, "config.d_in"),
        (FLAT | {"d_in": -12}, "config.d_in"),
        (FLAT | {"d_in": D_IN + 1}, "shape"),
        (FLAT | {"d_model": D_IN + 1}, "config.d_in"),
        (FLAT | {"d_sae": 2**40}, "config.d_sae"),
        (FLAT | {"d_sae": None}, "config.d_sae"),
        (FLAT | {"d_in": None}, "config.d_in"),
        (FLAT | {"d_out": D_OUT}, "config.d_out"),
        (FLAT | {"architecture": 3}, "config.architecture"),
        (FLAT | {"apply_b_dec_to_input": "yes"}, "config.apply_b_dec_to_input"),
        (FLAT | {"architecture": "jumprelu"}, "missing_tensor"),
        (FLAT | {"architecture": "gated"}, "missing_tensor"),
        (NESTED | {"architecture": "transcoder", "apply_b_dec_to_input": True}, "config.apply_b_dec_to_input"),
        (NESTED | {"metadata": [1]}, "config.metadata"),
    ],
)
def test_configs_that_are_refused(config: dict[str, Any], check: str, tmp_path: Path) -> None:
    path = write(tmp_path, config)
    with pytest.raises(SAEInvalidError) as error:
        describe(path)
    assert error.value.fields["check"] == check


@pytest.mark.parametrize(
    "config",
    [
        NESTED | {"architecture": "batchtopk"},
        NESTED | {"architecture": "matryoshka_batchtopk"},
        NESTED | {"architecture": "matching_pursuit"},
        NESTED | {"architecture": "temporal"},
        NESTED | {"architecture": "of next year"},
        NESTED | {"normalize_activations": "covariance_whitening"},
        NESTED | {"normalize_activations": "constant_scalar_rescale"},
        NESTED | {"reshape_activations": "somehow"},
        FLAT | {"activation_fn_str": "softmax"},
        FLAT | {"architecture": "gated", "activation_fn_str": "tanh-relu"},
    ],
)
def test_kinds_that_are_refused_by_name(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SAEUnsupportedError):
        describe(write(tmp_path, config))


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescaled", [None, True, False])
def test_batchtopk_is_used_with_the_threshold_of_its_training(
    architecture: str, rescaled: bool | None, tmp_path: Path
) -> None:
    """As SAELens saves it for inference: decoder rows of norm 1 where it rescales (by default), one threshold."""
    w, threshold = weights(30), 1.1
    tensors = {key: w[key] for key in BASIC} | {"topk_threshold": torch.tensor(threshold, dtype=torch.float64)}
    config = NESTED | {"architecture": architecture, "k": 2.5, "topk_threshold_lr": 0.01}
    if rescaled is not None:
        config |= {"rescale_acts_by_decoder_norm": rescaled}
    sae = load_sae(write(tmp_path, config, tensors))
    x, xs = rows()
    p = plain(w)
    norms = 1.0 if rescaled is False else np.linalg.norm(p["W_dec"], axis=1)
    h = ((xs - p["b_dec"]) @ p["W_enc"] + p["b_enc"]) * norms
    acts = np.where(h > threshold, np.maximum(h, 0), 0)
    assert 0 < np.count_nonzero(acts) < acts.size
    equal(sae.encode(x), acts)
    unit = p["W_dec"] / np.reshape(norms, (-1, 1))
    equal(sae(x), acts @ unit + p["b_dec"])
    equal(sae.decoder_rows(torch.arange(D_SAE)), unit)
    assert (sae.spec.architecture, sae.dtype) == (architecture, torch.float32)


@pytest.mark.parametrize(
    ("architecture", "told"),
    [
        ("batchtopk", "has no topk_threshold, below which a feature is off: save it for inference"),
        ("matching_pursuit", "an encoder that runs in steps"),
        ("temporal", "an encoder that keeps a state for each text"),
        ("clt", "an attachment at several hook points"),
    ],
)
def test_a_refusal_says_what_would_have_to_be_there(architecture: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(SAEUnsupportedError, match=told) as error:
        describe(write(tmp_path, NESTED | {"architecture": architecture}))
    assert error.value.fields["architecture"] == architecture


def test_layer_norm_and_constant_norm(tmp_path: Path) -> None:
    x, xs = rows()
    p = plain(weights(30))
    mean, std = xs.mean(axis=1, keepdims=True), xs.std(axis=1, ddof=1, keepdims=True)
    acts = relu(p, (xs - mean) / (std + 1e-5))
    normed = load_sae(write(tmp_path / "a", FLAT | {"normalize_activations": "layer_norm"}))
    equal(normed.encode(x), acts)
    equal(normed(x), (acts @ p["W_dec"] + p["b_dec"]) * std + mean)
    c = math.sqrt(D_IN) / np.linalg.norm(xs, axis=1, keepdims=True)
    acts = relu(p, xs * c)
    constant = load_sae(write(tmp_path / "b", NESTED | {"normalize_activations": "constant_norm_rescale"}))
    equal(constant.encode(x), acts)
    equal(constant(x), (acts @ p["W_dec"] + p["b_dec"]) / c)


@pytest.mark.parametrize("value", [True, "expected_average_only_in"])
def test_expected_average_with_and_without_its_constant(value: object, tmp_path: Path) -> None:
    x, xs = rows()
    p = plain(weights(30))
    without = load_sae(write(tmp_path / "a", FLAT | {"normalize_activations": value}))
    equal(without.encode(x), relu(p, xs))
    assert any("constant is not in the files" in warning for warning in without.spec.warnings)
    c = 0.37
    given = load_sae(write(tmp_path / "b", FLAT | {"normalize_activations": value, "norm_scaling_factor": c}))
    folded = p | {"W_enc": p["W_enc"] * c, "W_dec": p["W_dec"] / c, "b_dec": p["b_dec"] / c}
    equal(given.encode(x), relu(folded, xs))
    equal(given(x), relu(folded, xs) @ folded["W_dec"] + folded["b_dec"])
    assert given.spec.warnings == ()


@pytest.mark.parametrize("value", [None, False])
def test_absent_normalisations(value: object, tmp_path: Path) -> None:
    assert load_sae(write(tmp_path, FLAT | {"normalize_activations": value})).spec.warnings == ()


def test_scaling_factors(tmp_path: Path) -> None:
    w = weights(30)
    tensors = {key: w[key] for key in BASIC}
    ones = load_sae(write(tmp_path / "ones", FLAT, tensors | {"scaling_factor": torch.ones(D_SAE)}))
    assert "scaling_factor" not in ones.weights
    factor = torch.linspace(0.5, 2, D_SAE)
    with pytest.raises(SAEInvalidError) as error:
        load_sae(write(tmp_path / "unasked", FLAT, tensors | {"scaling_factor": factor}))
    assert error.value.fields["check"] == "scaling_factor"
    tuned = FLAT | {"finetuning_scaling_factor": True}
    sae = load_sae(write(tmp_path / "tuned", tuned, tensors | {"scaling_factor": factor}))
    x, xs = rows()
    p = plain(w)
    equal(sae.encode(x), relu(p, xs))
    equal(sae(x), (relu(p, xs) * factor.double().numpy()) @ p["W_dec"] + p["b_dec"])


@pytest.mark.parametrize(("architecture", "jumps", "skips"), [
    ("transcoder", False, False),
    ("skip_transcoder", False, True),
    ("jumprelu_transcoder", True, False),
    ("jumprelu_skip_transcoder", True, True),
])  # fmt: skip
def test_transcoders(architecture: str, jumps: bool, skips: bool, tmp_path: Path) -> None:
    w = weights(32, D_OUT)
    names = [*BASIC, *(["threshold"] if jumps else []), *(["W_skip"] if skips else [])]
    meta = {"sae_lens_version": "6.12.0", "hook_name": "blocks.2.mlp.hook_in", "hook_name_out": "blocks.2.hook_mlp_out"}
    config = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "d_out": D_OUT, "metadata": meta}
    sae = load_sae(write(tmp_path, config | {"apply_b_dec_to_input": False}, {key: w[key] for key in names}))
    x, xs = rows()
    p = plain(w)
    h = xs @ p["W_enc"] + p["b_enc"]
    acts = np.maximum(h, 0) * (h > p["threshold"] if jumps else True)
    equal(sae.encode(x), acts)
    decoded = acts @ p["W_dec"] + p["b_dec"]
    equal(sae.decode(sae.encode(x)), decoded)
    equal(sae(x), decoded + (xs @ p["W_skip"].T if skips else 0))
    assert (sae.spec.hook_point, sae.spec.hook_point_out) == (HookPoint("mlp_in", 2), HookPoint("mlp_out", 2))


V6 = {"architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "apply_b_dec_to_input": True}


def test_training_leftovers_beside_the_weights_do_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path, FLAT)
    put(path, "sparsity.safetensors", {"sparsity": torch.zeros(D_SAE)})
    put(path, "activation_scaler.json", config={"scaling_factor": 3.0})
    put(path, "runner_cfg.json", text="not even JSON")
    x, xs = rows()
    equal(load_sae(path).encode(x), relu(plain(weights(30)), xs))
