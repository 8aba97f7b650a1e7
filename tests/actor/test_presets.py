"""Presets through the actor: their units are resolved when they are saved, attached or not."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from sae_actor.domain.commands import Detach, RequestedIntervention, SavePreset
from sae_actor.domain.events import PresetSaved
from sae_actor.domain.refs import Edit
from sae_actor.errors import (
    BadRequestError,
    FeatureOutOfRangeError,
    SAEInUseError,
    SAENotFoundError,
    SAEUnsupportedError,
)
from tests.actor.world import REPOSITORY, A, B, World, get, living, turns

pytestmark = pytest.mark.anyio

HALF = Edit(feature=3, strength=0.5, unit="max")


def saving(*edits: Edit, sae_id: str = A) -> SavePreset:
    return SavePreset(name="calm", interventions=(RequestedIntervention(sae_id, steering=edits),))


async def saved(world: World) -> PresetSaved:
    payload = (await world.events())[-1].payload()
    assert isinstance(payload, PresetSaved)
    return payload


@pytest.mark.parametrize("attached", [True, False])
async def test_units_are_resolved_and_kept_as_they_were_sent(attached: bool) -> None:
    async with living() as world:
        world.engine.maxima = {3: 20.0}
        await world.ready("a")
        if attached:
            await world.attached("a")
        await world.submit(saving(HALF))
        (sae,) = (await saved(world)).interventions
        assert [(each.strength, each.unit) for each in (*sae.steering, *sae.asked)] == [(10.0, "raw"), (0.5, "max")]
        assert sae.weights_sha256 == world.state.saes[A].weights_sha256
        assert sae.weights_files == world.state.saes[A].weights_files != ()
        if attached:
            await world.done(Detach(A))
        world.engine.maxima = {3: 1.0}
        assert world.state.presets["calm"].interventions == (sae,)


async def test_what_cannot_be_resolved_is_refused_on_record() -> None:
    async with living() as world:
        await world.ready("a")
        world.engine.maxima = {5: 1e9}
        for command, error in (
            (saving(HALF), SAEUnsupportedError),
            (saving(replace(HALF, feature=5)), BadRequestError),
            (saving(replace(HALF, feature=99)), FeatureOutOfRangeError),
            (saving(HALF, sae_id=B), SAENotFoundError),
        ):
            with pytest.raises(error):
                await world.submit(command)
        assert (await world.types())[-4:] == ["CommandRejected"] * 4
        assert world.state.presets == {}


async def test_the_weights_are_those_that_the_units_were_resolved_for() -> None:
    """The files are fetched again, and are others, while the first ones are read."""
    async with living() as world:
        world.engine.maxima = {3: 20.0}
        await world.ready("a")
        gate = world.hub.hold("locate")
        sending = asyncio.create_task(world.submit(saving(HALF)))
        await turns()
        shelf = world.hub.repositories[REPOSITORY]
        others = tuple(replace(file, sha256="f" * 64) for file in shelf["a"].files)
        shelf["a"] = replace(shelf["a"], files=others)
        await world.done(get("a", force=True))
        gate.set()
        with pytest.raises(SAEInUseError):
            await sending
        assert world.state.presets == {}
