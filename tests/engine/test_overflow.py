"""A strength that half precision cannot hold is one request's matter: it takes no SAE from the others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sae_actor.actor import Actor, Performer
from sae_actor.domain.commands import Attach, Command, Import, LoadModel, Steer
from sae_actor.domain.events import Sampling
from sae_actor.domain.messages import AdmitGeneration, Start
from sae_actor.domain.refs import Edit
from sae_actor.domain.weights import import_id_of
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.errors import SAEError, SAEUnsupportedError
from sae_actor.generations import Generations, Requested
from sae_actor.hub import HuggingFaceHub
from sae_actor.hub.digests import sha256_of
from sae_actor.subscriptions import Broadcast
from tests.actor.world import Clock
from tests.engine.asking import active, attach, finished, load, no_progress, request
from tests.fakes.log import MemoryLog

pytestmark = pytest.mark.anyio

IDS = (72, 101, 108, 108, 111)


@pytest.mark.parametrize(
    ("model", "sae", "strength"),
    [("float16", "float32", 9e5), ("float32", "float16", 1e5), ("bfloat16", "float16", 1e5)],
)
async def test_the_text_alone_ends(tiny_llama: Path, tiny_sae: Path, model: str, sae: str, strength: float) -> None:
    engine = TorchEngine(EngineSettings(threads=1))
    try:
        await engine.load_model(load(str(tiny_llama), dtype=model), no_progress)
        await engine.attach(attach(5, dtype=sae), str(tiny_sae))
        edit = Edit(feature=3, strength=strength, exclude=())
        with pytest.raises(SAEUnsupportedError) as caught:
            await engine.raw(5, (Edit(feature=2, strength=1.0, exclude=()), edit))
        assert (caught.value.fields["feature"], caught.value.fields["strength"]) == (3, strength)
        assert 0 < caught.value.fields["limit"] < strength
        asked = (request(IDS, active(5, edit)), request(IDS, active(5, Edit(feature=3, strength=2.0, exclude=()))))
        refused, beside = await asyncio.gather(*(finished(engine, each) for each in asked))
        assert (refused.reason, refused.error_code, refused.faulted) == ("error", "sae_unsupported", None)
        assert (beside.reason, beside.receipt.tokens_edited) == ("length", len(IDS) + 7)
    finally:
        await engine.close()


async def test_a_request_that_asks_too_much_leaves_the_steering_of_the_others(
    tiny_llama: Path, tiny_sae: Path, tmp_path: Path
) -> None:
    log, engine = MemoryLog(), TorchEngine(EngineSettings(threads=1))
    performer = Performer(engine, HuggingFaceHub(tmp_path, import_roots=[tiny_sae.parent]), lambda *_: None, 2.0)
    actor = Actor(log, engine, performer, Clock(), Broadcast(log))
    await actor.replay()
    await actor.start(Start(version="t"))
    texts = Generations(actor, engine)
    sae_id = import_id_of(str(tiny_sae), digest=sha256_of(tiny_sae / "sae_weights.safetensors"))
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=10, seed=0)

    async def done(command: Command) -> None:
        accepted = await actor.submit(command, principal="admin")
        assert (await actor.outcome(accepted.command_id, 30)).status == "completed"

    async def steered(steering: tuple[Edit, ...] | None = None) -> tuple[Edit, ...]:
        """What a text ran under."""

        def ask(generation_id: str) -> AdmitGeneration:
            return AdmitGeneration(
                generation_id=generation_id, kind="completion", tokens_prompt=5, sampling=sampling, steering=steering
            )

        (text,) = await texts.open_all([Requested(ask, IDS)], principal="bob")
        await text.result()
        (sae,) = text.started.intervention
        return sae.steering

    ours = (Edit(3, 0.0, "scale", exclude=()),)
    try:
        for command in (
            LoadModel(str(tiny_llama)), Import(str(tiny_sae)), Attach(sae_id, dtype="float16"), Steer(sae_id, ours)
        ):  # fmt: skip
            await done(command)
        assert await steered() == ours
        too_much = (Edit(5, 1e5, exclude=()),)
        with pytest.raises(SAEUnsupportedError):
            await steered(too_much)
        with pytest.raises(SAEUnsupportedError):
            await actor.submit(Steer(sae_id, too_much), principal="admin")
        # What only shows when it is computed ends that text, and no other.
        with pytest.raises(SAEError):
            await steered(tuple(Edit(feature, 6e4, exclude=()) for feature in range(24)))
        assert await steered() == ours
        assert not {"HookFaulted", "SaeDetached"} & {event.type for event in await log.read()}
    finally:
        await texts.close()
        await actor.stop()
        await engine.close()
