"""SmolLM2 with bitsandbytes' quantised weights: loaded, steered, and run again from its record.

Run where bitsandbytes is: `python -m tests.environments quantized`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import anyio
import pytest
from msgspec.structs import replace

from sae_actor.domain.commands import Quantization
from tests.reproducing.conftest import Reproduce
from tests.reproducing.making import GREEDY, edit, recording

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"),
]

BELIEVER = edit(584, 85.0, exclude=("sink",))
SCHEMES: tuple[Quantization, ...] = get_args(Quantization.__origin__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantised_model_is_steered_and_run_again(
    scheme: Quantization, real_model: Path, demo_sae: Path, tmp_path: Path, reproduce: Reproduce
) -> None:
    sampling = replace(GREEDY, max_tokens=12)

    async def live() -> tuple[dict[str, str], dict[str, str], int]:
        async with recording(tmp_path / "log", real_model, quantization=scheme) as service:
            ids, said = {}, {}
            sae_id = await service.attach(demo_sae)
            ids["plain"], end = await service.say("My day was", sampling)
            said["plain"] = end.finished.text
            await service.steer(sae_id, BELIEVER)
            ids["steered"], end = await service.say("My day was", sampling)
            said["steered"] = end.finished.text
            model = service.actor.state.model
            assert model is not None
            assert model.quantization == scheme
            assert model.facts is not None
            assert model.facts.quantization == scheme
            assert model.facts.environment["quantization"]["matrices"] == 30 * 7
            return ids, said, model.facts.memory_bytes

    ids, said, taken = anyio.run(live)
    assert said["plain"] != said["steered"]
    assert taken < 538_060_288 / 2  # of the plain model
    code, views = reproduce(tmp_path / "log", "--all")
    assert code == 0
    assert {view["generation_id"]: view["verdict"] for view in views} == dict.fromkeys(ids.values(), "identical")
    assert all(view["environment"]["same"] for view in views), views
