"""Vectors: the three shapes of files load with the values that are in them, and what has no encoder says so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_actor.domain.refs import Edit, HookPoint
from sae_actor.errors import SAEAmbiguousError, SAEError, SAEInvalidError, SAEUnsupportedError
from sae_actor.formats import check_values, describe
from sae_actor.formats.pickles import convert
from sae_actor.formats.vectors.tensors import written
from sae_actor.sae import Steering, load_sae

from ..vector_files import write_gguf, write_steering

ROWS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
POINT = HookPoint("resid_post", 12)


def saved(folder: Path, rows: torch.Tensor = ROWS, /, **metadata: str) -> Path:
    save_file({"W_dec": rows}, folder / "vectors.safetensors", {"hook_point": "resid_post.12", **metadata})
    return folder


def test_rows_and_names_of_safetensors(tmp_path: Path) -> None:
    folder = saved(tmp_path, names=json.dumps(["calm", "sea", "war"]), median_norm="12.5")
    found = describe(folder)
    assert (found.format, found.architecture, found.d_in, found.d_sae, found.d_out) == ("vectors", "vectors", 8, 3, 8)
    assert (found.hook_point, found.hook_name, found.trained_layer) == (POINT, "resid_post.12", 12)
    assert (found.names, found.median_norm) == (("calm", "sea", "war"), 12.5)
    assert found.memory_bytes("float32") == 3 * 8 * 4
    sae = load_sae(folder)
    assert torch.equal(sae.W_dec, ROWS)
    assert torch.equal(sae.decoder_rows(torch.tensor([2])), ROWS[2:])
    check_values(folder)


def test_what_the_service_writes_it_reads(tmp_path: Path) -> None:
    for point in (POINT, HookPoint("mlp_in", 3, "gain"), HookPoint("mlp_out", 0, "norm")):
        (tmp_path / "vectors.safetensors").write_bytes(written(ROWS.tolist(), point, ("a", "b", "ß"), 3.25))
        found = describe(tmp_path)
        assert (found.hook_point, found.names, found.median_norm) == (point, ("a", "b", "ß"), 3.25)
        assert torch.equal(load_sae(tmp_path).W_dec, ROWS)
    assert written(ROWS.tolist(), POINT) == written(ROWS.tolist(), POINT)
    with pytest.raises(OverflowError):
        written([[1e39]], POINT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_control_vector_is_read_a_layer_at_a_time(tmp_path: Path, dtype: torch.dtype) -> None:
    write_gguf(tmp_path / "happy.gguf", {5: ROWS[0].to(dtype), 6: ROWS[1].to(dtype), 14: ROWS[2].to(dtype)})
    with pytest.raises(SAEAmbiguousError) as refused:
        describe(tmp_path)
    assert refused.value.fields["layers"] == [5, 6, 14]
    assert "5, 6, 14" in refused.value.detail
    for layer, row in ((5, ROWS[0]), (6, ROWS[1]), (14, ROWS[2])):
        found = describe(tmp_path, layer=layer)
        assert found.hook_point == HookPoint("resid_post", layer)
        assert (found.architecture, found.d_sae, found.d_in) == ("vectors", 1, 8)
        assert torch.equal(load_sae(tmp_path, layer=layer).W_dec[0], row.to(dtype))
    with pytest.raises(SAEInvalidError) as missing:
        load_sae(tmp_path, layer=7)
    assert missing.value.fields == {"check": "layer", "layers": [5, 6, 14]}


def test_a_control_vector_of_one_layer_needs_no_layer(tmp_path: Path) -> None:
    write_gguf(tmp_path / "happy.gguf", {5: ROWS[0]}, version=2)
    assert torch.equal(load_sae(tmp_path).W_dec, ROWS[:1])
    assert describe(tmp_path).ignored == {"controlvector.model_hint": "says llama, the kind of model"}


def test_steering_of_the_harness_through_the_child(tmp_path: Path) -> None:
    pickle = write_steering(tmp_path / "in" / "steer.pt", {"layers.3": ROWS[0], "model.layers.7.mlp": ROWS[1]})
    out = convert(pickle, tmp_path / "out").parent
    with pytest.raises(SAEAmbiguousError) as refused:
        describe(out)
    assert refused.value.fields["layers"] == [3, 7]
    found = describe(out, layer=3)
    assert found.hook_point == HookPoint("resid_post", 3)
    assert "5.0" in found.ignored["steering_coefficient"]
    assert "add" in found.ignored["action"]
    assert describe(out, layer=7).hook_name == "model.layers.7.mlp"
    for layer, row in ((3, ROWS[0]), (7, ROWS[1])):
        assert torch.equal(load_sae(out, layer=layer).W_dec[0], row)
        assert torch.equal(load_sae(pickle, layer=layer, allow_pickle=True).W_dec[0], row)
    with pytest.raises(SAEUnsupportedError) as closed:
        describe(pickle.parent)
    assert closed.value.fields["check"] == "pickle"


def test_steering_of_one_head_or_with_a_bias_is_refused_by_name(tmp_path: Path) -> None:
    head = write_steering(tmp_path / "head.pt", {"layers.3": ROWS[0]}, head_index=2)
    bias = write_steering(tmp_path / "bias.pt", {"layers.3": ROWS[0]}, action="clamp", bias=ROWS[1])
    for file, why in ((head, "head_index"), (bias, "bias")):
        with pytest.raises(SAEUnsupportedError, match=why):
            load_sae(file, allow_pickle=True)
        with pytest.raises(SAEUnsupportedError, match=why):
            describe(convert(file, tmp_path / file.stem).parent)


def test_there_is_no_encoder(tmp_path: Path) -> None:
    sae = load_sae(saved(tmp_path))
    x = torch.randn(5, 8)
    for read in (sae.encode, sae, lambda x: sae.W_enc):
        with pytest.raises(SAEUnsupportedError, match="no encoder"):
            read(x)


def test_it_steers_by_its_formulas(tmp_path: Path) -> None:
    sae = load_sae(saved(tmp_path))
    x, on = torch.randn(5, 8), torch.ones(1, 5, dtype=torch.bool)
    d, v = ROWS[1], ROWS[1] / ROWS[1].norm()
    along = (x @ v)[:, None]
    expected: dict[str, Callable[[], torch.Tensor]] = {
        "add": lambda: x + 2.5 * d,
        "project": lambda: x + (2.5 - 1) * along * v,
        "set_projection": lambda: x + (2.5 - along) * v,
    }
    for method, want in expected.items():
        edit = Edit(feature=1, strength=2.5, method=method)  # type: ignore[arg-type]  # one of the literals
        got, _ = Steering.prepare(sae, [edit]).apply(x, on)
        torch.testing.assert_close(got, want(), rtol=1e-5, atol=1e-5)


def test_layer_is_for_vectors_alone(tmp_path: Path) -> None:
    saved(tmp_path)
    assert describe(tmp_path, layer=12).trained_layer == 12
    with pytest.raises(SAEInvalidError) as other:
        describe(tmp_path, layer=11)
    assert other.value.fields == {"check": "layer", "layers": [12]}
    demo = Path(__file__).parents[3] / "sae_actor" / "demo" / "smollm2-135m-layer15"
    with pytest.raises(SAEUnsupportedError, match="layer"):
        describe(demo, layer=15)


MALFORMED: dict[str, tuple[dict[str, str], str]] = {
    "hook": ({"hook_point": "resid_post"}, "hook_point"),
    "hook of no norm": ({"hook_point": "resid_post.1 before its norm"}, "hook_point"),
    "layer": ({"hook_point": "resid_post.4096"}, "hook_point"),
    "too few names": ({"names": '["a"]'}, "names"),
    "names that are numbers": ({"names": "[1, 2, 3]"}, "names"),
    "names that are no JSON": ({"names": "a,b,c"}, "names"),
    "median": ({"median_norm": "nan"}, "median_norm"),
    "no median": ({"median_norm": "-1"}, "median_norm"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_metadata(tmp_path: Path, case: str) -> None:
    metadata, check = MALFORMED[case]
    with pytest.raises(SAEInvalidError) as error:
        describe(saved(tmp_path, **metadata))
    assert error.value.fields["check"] == check


def test_malformed_rows(tmp_path: Path) -> None:
    for rows, check in ((ROWS[0], "shape"), (ROWS.int(), "dtype"), (torch.zeros(0, 8), "shape")):
        with pytest.raises(SAEInvalidError) as error:
            describe(saved(tmp_path, rows))
        assert error.value.fields["check"] == check
    endless = ROWS.clone()
    endless[1, 1] = float("inf")
    with pytest.raises(SAEInvalidError) as error:
        check_values(saved(tmp_path, endless))
    assert error.value.fields["check"] == "finite"


def test_gguf_that_is_no_control_vector(tmp_path: Path) -> None:
    def check(**changes: object) -> str:
        rows = changes.pop("rows", {5: ROWS[0]})
        write_gguf(tmp_path / "x.gguf", rows, **changes)  # type: ignore[arg-type]
        with pytest.raises(SAEInvalidError) as error:
            describe(tmp_path)
        return str(error.value.fields["check"])

    assert check(keys={"general.architecture": (8, "llama")}) == "format"
    assert check(version=1) == "header"
    assert check(names={5: "blk.5.attn_q.weight"}) == "foreign_tensor"
    assert check(names={5: "direction.5000"}) == "foreign_tensor"
    assert check(rows={5: ROWS[0], 6: ROWS[1]}, names={6: "direction.5"}) == "duplicate_tensor"
    assert check(rows={}) == "missing_tensor"
    assert check(rows={5: ROWS[0].int()}) == "dtype"


def test_gguf_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "x.gguf", {5: ROWS[0], 6: ROWS[1]}).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "x.gguf").write_bytes(whole[:length])
        with pytest.raises(SAEError):
            describe(tmp_path, layer=6)
    (tmp_path / "x.gguf").write_bytes(whole)
    assert torch.equal(load_sae(tmp_path, layer=6).W_dec[0], ROWS[1])


def test_gguf_with_absurd_sizes_is_refused_at_once(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "x.gguf", {5: ROWS[0]}).read_bytes()
    for at in range(8, len(whole) - 64, 4):
        (tmp_path / "x.gguf").write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
        with contextlib.suppress(SAEError):  # most are refused; some places hold text, which may be anything
            describe(tmp_path)
