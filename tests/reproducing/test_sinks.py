"""`log reproduce` tells sinks by the rule that a text was made under: by a window of the prompt, or by all of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from sae_actor.domain.commands import RequestedIntervention
from tests.engine.tiny import save_tiny_model, save_tiny_sae
from tests.reproducing.conftest import Reproduce
from tests.reproducing.making import View, edit, forged, recording

PROMPT = "".join(random.Random(4).choices("abcdefghij", k=300) + random.Random(5).choices("klmnopqrst XYZ", k=390))
"""More than a window, and other letters behind its middle."""


async def written(home: Path, **own: Any) -> None:
    model = save_tiny_model(home / "model", max_position_embeddings=1024)
    async with recording(home / "log", model) as service:
        sae_id = await service.attach(save_tiny_sae(home / "sae"))
        if own:
            await service.say(PROMPT, interventions=(RequestedIntervention(sae_id=sae_id, **own),))
        else:
            await service.steer(sae_id, edit(3, 30.0, exclude=("sink",)))
            await service.say(PROMPT)


def without_a_window(_: str, data: View) -> None:
    data.pop("sink_window", None)


def with_a_window(_: str, data: View) -> None:
    if "sink_window" in data:
        data["sink_window"] = 512


@pytest.mark.parametrize("window", [512, None])
@pytest.mark.parametrize("own", [{}, {"mode": "reconstruct"}], ids=["steered", "reconstructed"])
def test_a_text_is_run_under_the_rule_of_its_record(
    tmp_path: Path,
    reproduce: Reproduce,
    monkeypatch: pytest.MonkeyPatch,
    window: int | None,
    own: dict[str, Any],
) -> None:
    """A random model has no outliers of 5 times the median: what is above it counts here."""
    monkeypatch.setattr("sae_actor.engine.interventions.positions.SINK_FACTOR", 1.0)
    monkeypatch.setattr("sae_actor.domain.rules.admission.SINK_WINDOW", window)
    anyio.run(lambda: written(tmp_path, **own))
    code, (view,) = reproduce(tmp_path / "log", "--all")
    assert (code, view["verdict"], view["positions_agree"]) == (0, "identical", True)
    if window is None:
        # A log of before has no such field at all.
        folder = anyio.run(forged, tmp_path / "log", tmp_path / "older", without_a_window)
        code, (view,) = reproduce(folder, "--all")
        assert (code, view["verdict"], view["positions_agree"]) == (0, "identical", True)
    change: Callable[[str, View], None] = without_a_window if window == 512 else with_a_window
    other = anyio.run(forged, tmp_path / "log", tmp_path / "forged", change)
    _, (view,) = reproduce(other, "--all")
    assert view["positions_agree"] is False, "the other rule leaves out other positions"


def test_sinks_that_were_reconstructed_are_reconstructed_again(tmp_path: Path, reproduce: Reproduce) -> None:
    anyio.run(lambda: written(tmp_path, mode="reconstruct", exclude=()))
    code, (view,) = reproduce(tmp_path / "log", "--all")
    assert (code, view["verdict"], view["positions_agree"]) == (0, "identical", True)

    def usual(_: str, data: View) -> None:
        if "intervention" in data:
            data["intervention"][0]["exclude"] = None

    other = anyio.run(forged, tmp_path / "log", tmp_path / "forged", usual)
    _, (view,) = reproduce(other, "--all")
    assert view["positions_agree"] is False
