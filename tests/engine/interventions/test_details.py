"""What is reported of each position is what plain torch computes with hooks of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import UnsetType
from msgspec.structs import replace
from torch import Tensor

from sae_actor.domain.refs import Edit, HookPoint
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.ports import PositionDetails, Watch
from sae_actor.sae import SAE, load_sae
from tests.engine.asking import active, attach, load, no_progress, read, request
from tests.engine.tiny import save_tiny_sae, tiny_model

pytestmark = pytest.mark.anyio

IDS = tuple(range(40, 62))
LOWER = HookPoint("resid_post", 0)


@pytest.fixture
async def engine(engine: TorchEngine, tiny_sae: Path) -> TorchEngine:
    """With the SAE on its model."""
    await engine.attach(attach(5), str(tiny_sae))
    return engine


def run(ids: tuple[int, ...], writes: Mapping[int, Callable[[Tensor], Tensor]]) -> dict[int, tuple[Tensor, Tensor]]:
    """The rows [n, 32] that arrive after these blocks, and what is written in their place."""
    reference: Any = tiny_model("llama")
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def hook(at: int, write: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def called(_: Any, __: Any, out: Any) -> Any:
            x = out if isinstance(out, Tensor) else out[0]
            new = write(x[0])
            seen[at] = x[0].clone(), new.clone()
            return new[None] if isinstance(out, Tensor) else (new[None], *out[1:])

        return called

    for at, write in writes.items():
        reference.model.layers[at].register_forward_hook(hook(at, write))
    with torch.inference_mode():
        reference(input_ids=torch.tensor([ids]))
    return seen


def ratios(x: Tensor, new: Tensor) -> Tensor:
    found: Tensor = (new - x).norm(dim=-1) / x.norm(dim=-1)
    return found


def features_of(found: list[PositionDetails]) -> tuple[Tensor, Tensor]:
    """[positions, features] each: before and after."""
    rows = [each.features for each in found if not isinstance(each.features, UnsetType)]
    before, after = ([[getattr(one, name) for one in row] for row in rows] for name in ("before", "after"))
    return torch.tensor(before), torch.tensor(after)


async def details(engine: TorchEngine, asked: Any) -> tuple[list[PositionDetails], tuple[int, ...]]:
    """Those of all positions, and the ids of all that were run."""
    tokens, end = await read(engine.generate(asked))
    return [each for token in tokens for each in token.details], (*asked.token_ids, *end.token_ids[:-1])


def without_first(change: Tensor) -> Tensor:
    return torch.cat((torch.zeros_like(change[:1]), change[1:]))


@pytest.mark.parametrize("chunk", [2048, 5])
async def test_edits_of_two_saes_at_two_blocks(
    tiny_llama: Path, tiny_sae: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """In one piece, and in pieces of 5 after the first, which holds what sinks are measured with."""
    monkeypatch.setattr("sae_actor.engine.interventions.positions.measured", lambda prompt, _: min(prompt, 5))
    monkeypatch.setattr("sae_actor.engine.interventions.hooks.measured", lambda prompt, _: min(prompt, 5))
    engine = TorchEngine(EngineSettings(threads=1, prompt_tokens=chunk))
    await engine.load_model(load(str(tiny_llama)), no_progress)
    await engine.attach(attach(5), str(tiny_sae))
    await engine.attach(attach(6, point=LOWER), str(tiny_sae))
    upper = active(5, Edit(feature=3, strength=6.0), Edit(feature=7, strength=4.0, method="set", positions="generated"))
    lower = active(6, Edit(feature=2, strength=3.0, positions="prompt"), point=LOWER)
    watches = Watch(sae=active(5), features=(3, 7)), Watch(sae=active(6, point=LOWER), features=(2,))
    found, ids = await details(engine, replace(request(IDS, upper, lower), details=watches))
    await engine.close()

    sae, prompt = load_sae(tiny_sae), torch.arange(len(ids))[:, None] < len(IDS)

    def below(x: Tensor) -> Tensor:
        return x + without_first(3.0 * sae.W_dec[2].expand_as(x)) * prompt

    def above(x: Tensor) -> Tensor:
        set_ = (4.0 - sae.encode(x)[:, 7:8]) * sae.W_dec[7] * ~prompt
        return x + without_first(6.0 * sae.W_dec[3].expand_as(x)) + set_

    seen = run(ids, {0: below, 1: above})
    moved = torch.stack([ratios(*seen[at]) for at in (0, 1)])
    expected = moved.sum(0) / (moved > 0).sum(0).clamp_min(1)
    assert torch.tensor([each.relative_norm for each in found]) == pytest.approx(expected, abs=1e-4)
    before, after = features_of(found)
    for at, told in ((0, before), (1, after)):
        wanted = torch.cat((sae.encode(seen[1][at])[:, (3, 7)], sae.encode(seen[0][at])[:, (2,)]), dim=1)
        assert torch.allclose(told, wanted, atol=1e-3)
    first = [("sae-5", 0), ("sae-6", 0)]
    assert [[*each.edits] for each in found] == [[]] + [first] * 21 + [[("sae-5", 0), ("sae-5", 1)]] * 7


async def test_two_saes_at_one_hook_point_read_what_both_left(engine: TorchEngine, tmp_path: Path) -> None:
    other = save_tiny_sae(tmp_path / "other", seed=2)
    await engine.attach(attach(6), str(other))
    saes = active(5, Edit(feature=3, strength=6.0, exclude=())), active(6, Edit(feature=4, strength=5.0, exclude=()))
    watches = Watch(sae=active(5), features=(3, 8)), Watch(sae=active(6), features=(4, 8))
    found, ids = await details(engine, replace(request(IDS, *saes), details=watches))
    one, two = load_sae(engine._folders[5]), load_sae(other)
    x, new = run(ids, {1: lambda x: x + 6.0 * one.W_dec[3] + 5.0 * two.W_dec[4]})[1]
    assert torch.tensor([each.relative_norm for each in found]) == pytest.approx(ratios(x, new), abs=1e-4)
    for told, rows in zip(features_of(found), (x, new), strict=True):
        wanted = torch.cat((one.encode(rows)[:, (3, 8)], two.encode(rows)[:, (4, 8)]), dim=1)
        assert torch.allclose(told, wanted, atol=1e-3)


async def test_a_reconstruction_is_encoded_again(engine: TorchEngine, tiny_sae: Path) -> None:
    sae: SAE = load_sae(tiny_sae)
    asked = request(IDS, active(5, Edit(feature=3, strength=6.0), mode="reconstruct"))
    found, ids = await details(engine, replace(asked, details=(Watch(sae=active(5), features=(3, 8)),)))

    def rebuilt(x: Tensor) -> Tensor:
        acts = sae.encode(x)
        acts[:, 3] += 6.0
        return torch.cat((x[:1], sae.decode(acts)[1:]))

    x, new = run(ids, {1: rebuilt})[1]
    assert torch.tensor([each.relative_norm for each in found]) == pytest.approx(ratios(x, new), abs=1e-4)
    for told, rows in zip(features_of(found), (x, new), strict=True):
        assert torch.allclose(told, sae.encode(rows)[:, (3, 8)], atol=1e-3)


async def test_an_sae_that_is_read_above_is_not_written_to(engine: TorchEngine, tiny_sae: Path) -> None:
    """Before and after are those of its own hook point; what others write below is in both."""
    await engine.attach(attach(6, point=LOWER), str(tiny_sae))
    asked = request(IDS, active(6, Edit(feature=2, strength=3.0, exclude=()), point=LOWER))
    found, ids = await details(engine, replace(asked, details=(Watch(sae=active(5), features=(2,)),)))
    sae = load_sae(tiny_sae)
    x, _ = run(ids, {0: lambda x: x + 3.0 * sae.W_dec[2], 1: lambda x: x})[1]
    before, after = features_of(found)
    assert torch.equal(before, after)
    assert torch.allclose(before, sae.encode(x)[:, (2,)], atol=1e-3)


async def test_what_leaves_before_a_gain_is_seen_without_it(tiny_llama: Path, tmp_path: Path) -> None:
    """An SAE before the gain of a norm reads its own edit in the same units."""
    point = HookPoint("mlp_in", 1, "gain")
    engine = TorchEngine(EngineSettings(threads=1))
    await engine.load_model(load(str(tiny_llama)), no_progress)
    folder = save_tiny_sae(tmp_path / "before")
    await engine.attach(attach(5, point=point), str(folder))
    asked = request(IDS, active(5, Edit(feature=3, strength=6.0, exclude=()), point=point), tokens=1)
    found, _ = await details(engine, replace(asked, details=(Watch(sae=active(5, point=point), features=(3,)),)))
    await engine.close()
    before, after = features_of(found)
    sae = load_sae(folder)
    model: Any = tiny_model("llama")
    seen: list[Tensor] = []
    norm = model.model.layers[1].post_attention_layernorm
    norm.register_forward_hook(lambda _, __, out: seen.append(out[0] / norm.weight))
    with torch.inference_mode():
        model(input_ids=torch.tensor([IDS]))
    (x,) = seen
    assert torch.allclose(before, sae.encode(x)[:, (3,)], atol=1e-3)
    assert torch.allclose(after, sae.encode(x + 6.0 * sae.W_dec[3])[:, (3,)], atol=1e-3)
    assert torch.tensor([each.relative_norm for each in found]) == pytest.approx(6.0 / x.norm(dim=-1), abs=1e-4)
