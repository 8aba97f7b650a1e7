"""kill -9 of a real service under load, at moments that chance picks: what was acknowledged is there afterwards.

The normal suite kills 20 times; `pytest -m crash` 200 times, and as often again with an engine that attaches.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

from sae_actor.domain.weights import import_id_of
from sae_actor.eventlog import export_bundle
from sae_actor.hub.digests import KnownDigests
from sae_actor.hub.imports import digest_of

from .crashing import Run, folders


def run(tmp_path: Path, kills: int, seed: int, *, with_model: bool, seconds: float = 0.25) -> str:
    imports = folders(tmp_path / "saes")
    ids = [import_id_of(path, digest=digest_of(path, KnownDigests())) for path in imports]
    lives = Run(tmp_path / "data", imports, ids, random.Random(seed), with_model=with_model, seconds=seconds)
    for _ in range(kills):
        lives.life()
    lives.last_life()
    assert len(lives.acknowledged) > 3 * kills, "there was no load"
    head = asyncio.run(export_bundle(tmp_path / "data", tmp_path / "bundle"))
    verify = [sys.executable, "-I", "-S", str(tmp_path / "bundle" / "verify.py"), "--head"]
    verified = subprocess.run([*verify, f"{head.position}:{head.hash}"], capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout
    return lives.told()


@pytest.mark.parametrize(("kills", "with_model"), [(12, False), (8, True)], ids=["as it ships", "with an engine"])
def test_kills_under_load_lose_nothing(tmp_path: Path, kills: int, with_model: bool) -> None:
    """Rows 1, 2, 5 and 8."""
    print(run(tmp_path, kills, seed=1, with_model=with_model))


@pytest.mark.crash
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("with_model", [False, True], ids=["as it ships", "with an engine"])
def test_two_hundred_kills_under_load_lose_nothing(
    tmp_path: Path, with_model: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    told = run(tmp_path, 200, seed=2, with_model=with_model, seconds=0.8)
    with capsys.disabled():
        print(f"\n{told}")
