"""What the port `Engine` promises of SAEs that come and go."""

from __future__ import annotations

import asyncio

import pytest

from sae_actor.domain.effects import Residents
from sae_actor.domain.refs import Edit, HookPoint
from sae_actor.errors import SAEIncompatibleError
from sae_actor.ports import Token
from tests.engine.asking import active, attach, detach, finished, read, request
from tests.engine.conftest import Given

pytestmark = pytest.mark.anyio

STRONG = Edit(feature=3, strength=40.0)


async def test_an_sae_that_does_not_fit(given: Given) -> None:
    with pytest.raises(SAEIncompatibleError) as caught:
        await given.engine.attach(attach(5, point=HookPoint("mlp_act", 1)), given.sae)
    assert caught.value.fields["sae_d_in"] == 32
    assert caught.value.fields["model_d"] != 32
    assert await given.engine.detach(detach(5), 0.0) == 0


async def test_the_side_of_a_norm_that_the_model_lacks(given: Given) -> None:
    with pytest.raises(SAEIncompatibleError):
        await given.engine.attach(attach(5, point=HookPoint("mlp_out", 1, "gain")), given.sae)
    assert await given.engine.detach(detach(5), 0.0) == 0
    await given.engine.attach(attach(6, point=HookPoint("mlp_in", 1, "gain")), given.sae)


async def test_attaching_twice_is_attaching_once(given: Given) -> None:
    first = await given.engine.attach(attach(5), given.sae)
    assert await given.engine.attach(attach(5), given.sae) == first
    assert first.memory_bytes == 4 * (32 * 24 + 24 + 24 * 32 + 32)
    assert first.dtype == "float32"


async def test_detaching_frees_the_bytes_once(given: Given) -> None:
    took = await given.attach(5)
    assert await given.engine.detach(detach(5), 1.0) == took
    assert await given.engine.detach(detach(5), 1.0) == 0


async def test_detaching_waits_for_texts(given: Given) -> None:
    await given.attach(5)
    stream = given.engine.generate(request(await given.ids(), active(5, STRONG), tokens=20))
    freed = asyncio.create_task(given.engine.detach(detach(5), 30.0))
    _, end = await read(stream)
    assert end.reason == "length"
    assert await freed > 0


async def test_detaching_ends_texts_that_take_too_long(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    running = given.engine.generate(request(ids, active(5, STRONG), tokens=110))
    other = given.engine.generate(request(ids, tokens=20))
    await anext(running)
    assert await given.engine.detach(detach(5), 0.0) > 0
    tokens, end = await read(running)
    assert end.reason == "intervention_removed"
    assert end.receipt.tokens_generated == len(tokens) + 1
    assert (await read(other))[1].reason == "length"


async def test_a_text_under_an_sae_that_is_gone(given: Given) -> None:
    end = await finished(given.engine, request(await given.ids(), active(5, STRONG)))
    assert (end.reason, end.token_ids) == ("intervention_removed", ())


async def test_what_is_not_retained_goes(given: Given) -> None:
    ids = await given.ids()
    await given.attach(5)
    await given.attach(6)
    running = given.engine.generate(request(ids, active(5, STRONG), tokens=110))
    await anext(running)
    given.engine.retain(Residents(model=1, saes=(6,)))
    assert (await finished(given.engine, request(ids, active(6, STRONG)))).reason == "length"
    assert (await read(running))[1].reason in ("intervention_removed", "length")
    await asyncio.sleep(0.1)
    assert await given.engine.detach(detach(5), 0.0) == 0
    assert await given.engine.detach(detach(6), 0.0) > 0


async def test_a_text_that_is_stopped_tells_what_it_wrote_to(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    stream = given.engine.generate(request(ids, active(5, STRONG), tokens=110))
    first = await anext(stream)
    assert isinstance(first, Token)
    stream.stop()
    tokens, end = await read(stream)
    made = [first.id, *(token.id for token in tokens)]
    run = len(ids) + len(made) - 1
    assert (end.reason, list(end.token_ids), end.edited) == ("cancelled", made, ((1, run),))
    assert end.receipt.tokens_edited == run - 1
    waiting = given.engine.generate(request(ids, tokens=110))
    waiting.stop()
    assert (await read(waiting))[1].reason == "cancelled"
    waiting.stop()  # harmless after the end
    assert (await finished(given.engine, request(ids))).reason == "length"
