"""`features.json`: read where it is, none where it is not, refused where it cannot be understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_actor.demo import SAE_FOLDER
from sae_actor.errors import SAEInvalidError
from sae_actor.formats.settings.statistics import NAME, Statistics, read_statistics


def test_of_the_bundled_sae(demo_sae: Path) -> None:
    found = read_statistics(str(demo_sae))
    assert found.recorded.keys() >= found.maxima.keys()
    assert all(value > 0 for value in found.maxima.values())


def test_none(tmp_path: Path) -> None:
    assert read_statistics(str(tmp_path)) == Statistics()
    weights = tmp_path / "sae.safetensors"
    weights.touch()
    assert read_statistics(str(weights)) == Statistics()
    (tmp_path / NAME).write_text('{"0": {"top_tokens": ["a"]}, "about": "x", "median_norm": null}')
    found = read_statistics(str(tmp_path))
    assert (found.maxima, found.median_norm, found.recorded[0].top_tokens) == ({}, None, ("a",))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"0": 5}', '{"0": {"max": "big"}}', '{"median_norm": "x"}', "[" * 100_000]
)
def test_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(SAEInvalidError):
        read_statistics(str(tmp_path))


def test_the_bundled_sae_knows_every_unit() -> None:
    known = read_statistics(str(SAE_FOLDER))
    assert known.median_norm == 171
    assert len(known.maxima) == 2304
