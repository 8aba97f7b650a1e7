"""The bundled SAE is copied to a place of its own, and stays the one in the package."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

import pytest

from sae_actor.demo import SAE_FOLDER, sae
from sae_actor.demo.sae import place_sae

NAMES = sorted(path.name for path in SAE_FOLDER.iterdir())


def same(folder: Path) -> bool:
    return filecmp.cmpfiles(SAE_FOLDER, folder, NAMES, shallow=False)[0] == NAMES


def test_it_is_copied_once(tmp_path: Path) -> None:
    placed = place_sae(tmp_path)
    assert placed == tmp_path / SAE_FOLDER.name
    assert same(placed)
    before = placed.stat().st_ino
    assert place_sae(tmp_path) == placed
    assert placed.stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == [SAE_FOLDER.name]


def test_what_is_damaged_is_replaced(tmp_path: Path) -> None:
    weights = place_sae(tmp_path) / "sae_weights.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert same(place_sae(tmp_path))
    (tmp_path / SAE_FOLDER.name / "cfg.json").unlink()
    assert same(place_sae(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [SAE_FOLDER.name]


def test_where_nothing_can_be_written_it_is_the_package_s(tmp_path: Path) -> None:
    assert place_sae(tmp_path / "missing") == SAE_FOLDER


def test_another_process_may_be_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(source: Path, made: Path, **_: object) -> None:
        shutil.copytree(source, made)
        shutil.copytree(source, tmp_path / SAE_FOLDER.name)

    monkeypatch.setattr(sae, "shutil", type("Faster", (), {"copytree": staticmethod(copy), "copyfile": None}))
    monkeypatch.setattr(Path, "exists", lambda *_: False)
    assert place_sae(tmp_path) == tmp_path / SAE_FOLDER.name
