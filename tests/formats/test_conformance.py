"""The published cases: outputs of other libraries for the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sae_actor.errors import SAEInvalidError, SAEUnsupportedError
from sae_actor.formats import describe
from sae_actor.sae import load_sae

CASES: list[tuple[Path, dict[str, Any]]] = [
    (file.parent, json.loads(file.read_text()))
    for file in sorted((Path(__file__).parent / "conformance").glob("*/case.json"))
]
GOOD = [pytest.param(folder, case, id=folder.name) for folder, case in CASES if not case.get("must_fail")]
BAD = [pytest.param(folder, case, id=folder.name) for folder, case in CASES if case.get("must_fail")]

CHECKS = {
    "bad_config_not_json": "config",
    "bad_missing_tensor": "missing_tensor",
    "bad_shape_mismatch": "shape",
    "bad_truncated_weights": "truncated",
}


@pytest.mark.parametrize(("folder", "case"), GOOD)
def test_case(folder: Path, case: dict[str, Any]) -> None:
    want = load_file(folder / "expected.safetensors")
    sae = load_sae(folder / case["path"], dtype=torch.float32)
    tolerance = {"rtol": case["rtol"], "atol": case["atol"]}
    acts = sae.encode(want["x"])
    torch.testing.assert_close(acts, want["feature_acts"], **tolerance)
    torch.testing.assert_close(sae(want["x"]), want["reconstruction"], **tolerance)
    if sae.per_row:
        with pytest.raises(SAEUnsupportedError):
            sae.decode(acts)
    else:
        torch.testing.assert_close(sae.decode(acts), want["reconstruction"], **tolerance)


@pytest.mark.parametrize(("folder", "case"), GOOD)
def test_description_of_case(folder: Path, case: dict[str, Any]) -> None:
    description = describe(folder / case["path"], repository_id=case["repo_id"])
    for key in ("format", "architecture", "d_in", "d_sae", "d_out", "hook_name"):
        assert getattr(description, key) == case[key], key
    assert description.dtype == case["stored_dtype"]
    assert description.trained_layer == case["layer"]
    assert description.trained_on == case["model_name"]
    assert description.hook_point is not None
    assert description.hook_point.layer == case["layer"]
    assert (description.hook_point_out is not None) == case.get("transcoder", False)


@pytest.mark.parametrize(("folder", "case"), BAD)
def test_malformed_case(folder: Path, case: dict[str, Any]) -> None:
    for read in (describe, load_sae):
        with pytest.raises(SAEInvalidError) as error:
            read(folder / case["path"])
        assert error.value.fields["check"] == CHECKS[folder.name], case["why"]
