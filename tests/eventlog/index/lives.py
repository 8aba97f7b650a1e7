"""Logs of random lives, and every look-up in them, answered by reading all of the log."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec.structs import replace

from sae_actor.domain import events as ev
from sae_actor.domain.commands import Attach, Steer
from sae_actor.domain.events import Event, draft, payload_of
from sae_actor.domain.events.mentions import sae_ids
from sae_actor.domain.refs import Edit
from sae_actor.domain.views.explanation import Explaining
from sae_actor.domain.views.naming import Named
from sae_actor.eventlog.index import Finder, Readable
from tests.domain.dsl import A, B
from tests.domain.simulated import SAES, Service
from tests.domain.test_laws import ACTIONS, READY, actions
from tests.fakes.log import MemoryLog

ATTACHED = [*READY, ("command", Attach(A)), ("report", (0, True))]
steers = st.builds(Steer, st.sampled_from([A, A, B]), features=st.builds(lambda n: (Edit(n, 7.0),), st.integers(0, 20)))
busy = st.one_of(
    actions,
    st.tuples(st.just("text"), st.just(None)),
    st.tuples(st.just("text"), st.just(None)),
    st.tuples(st.just("command"), steers),
    st.tuples(st.just("command"), steers),
    st.tuples(st.just("report"), st.just((0, True))),
    st.tuples(st.just("end of text"), st.integers(0, 9)),
)
"""Many texts under steering that changes, and all else that may happen."""

PRINCIPALS = ("me", "you")
TAGS = (None, "t", "g1", "3")


def lived(script: Sequence[tuple[str, Any]], room: int, chance: random.Random) -> list[ev.Draft]:
    """The events of a service that did all this, with tags, principals, and a clock that goes back at times."""
    service = Service(room)
    for name, argument in script:
        ACTIONS[name](service, argument)
    drafts = []
    for event in service.events:
        payload = event.payload()
        assert payload is not None
        if isinstance(payload, ev.GenerationStarted):
            payload = replace(payload, tag=chance.choice(TAGS))
        second = event.position - chance.choice((0, 0, 0, 5))
        time = f"2026-01-01T00:{max(second, 0) // 60:02d}:{max(second, 0) % 60:02d}.000000Z"
        drafts.append(draft(payload, time=time, command_id=event.command_id, principal=chance.choice(PRINCIPALS)))
    return drafts


def erased(log: MemoryLog, position: int) -> None:
    log._rows[position - 1] = log._rows[position - 1]._replace(data=None, salt=None)


async def redacted(log: MemoryLog, chance: random.Random) -> None:
    """Erase the beginning of a generation, and perhaps its end, on record."""
    begun = [e for e in await log.read(0, 10_000, ["GenerationStarted"]) if e.payload() is not None]
    if not begun:
        return
    first = chance.choice(begun)
    ends = [
        e.position
        for e in await log.read(0, 10_000, ["GenerationFinished"])
        if isinstance(p := e.payload(), ev.GenerationFinished) and p.started_position == first.position
    ]
    for position in (first.position, *(ends if chance.random() < 0.5 else ())):
        record = ev.PayloadRedacted(redacted_position=position, why="asked for")
        time = f"2026-01-01T01:00:{chance.randrange(60):02d}.000000Z"
        await log.append([draft(record, time=time, command_id=None, principal="me")], expected=log.head.position)
        erased(log, position)


async def plainly(log: Readable) -> dict[str, Any]:
    """Every look-up, by reading all of the log."""
    events = await log.read(0, 100_000)
    answers: dict[str, Any] = {}
    for name, wanted in asked(events).items():
        explaining = Explaining(**wanted)
        for event in events:
            explaining.feed(event)
            if explaining.complete:
                break
        answers[name] = msgspec.to_builtins([*explaining.views.values()])
    for of in words(events):
        named = Named(of)
        for event in events:
            named.feed(event)
            if named.complete:
                break
        answers[f"named {of}"] = (named.found, named.erased if named.found is None else None)
    for types, sae_id in filters():
        found = [
            e.position
            for e in events
            if (types is None or e.type in types) and (sae_id is None or sae_id in sae_ids(bytes(e.data)))
        ]
        answers[f"events {types} {sae_id}"] = found
    for kind in ("GenerationFinished", "ActorStarted", "GpuLost"):
        answers[f"newest {kind}"] = [e.position for e in reversed(events) if e.type == kind]
    for time in moments(events):
        answers[f"by {time}"] = max((e.position for e in events if e.time <= time), default=0)
    return answers


async def looked_up(finder: Finder) -> dict[str, Any]:
    """The same look-ups by a finder."""
    log, answers = finder.log, {}
    until = log.head.position
    events = await log.read(0, 100_000)
    for name, wanted in asked(events).items():
        explaining = await finder.explained(lambda wanted=wanted: Explaining(**wanted), until)  # type: ignore[misc]
        answers[name] = msgspec.to_builtins([*explaining.views.values()])
    for of in words(events):
        named = await finder.named(of, until)
        answers[f"named {of}"] = (named.found, named.erased if named.found is None else None)
    for types, sae_id in filters():
        found: list[int] = []
        at = 0
        while at < until:
            page, at = await finder.page(at, until, 7, types, sae_id)
            found += [event.position for event in page]
        answers[f"events {types} {sae_id}"] = found
    for kind in ("GenerationFinished", "ActorStarted", "GpuLost"):
        found, down_to = [], until
        while down_to > 0:
            newest, down_to = await finder.newest(kind, 0, down_to, 3)
            found += [event.position for event in newest]
        answers[f"newest {kind}"] = found
    for time in moments(events):
        answers[f"by {time}"] = await finder.last_by(time, until)
    return answers


def asked(events: Sequence[Event]) -> dict[str, dict[str, Any]]:
    texts = (ev.GenerationStarted, ev.GenerationFinished)
    names = {payload.generation_id for event in events if isinstance(payload := payload_of(event), texts)}
    by_id = [{"generation_id": name} for name in sorted(names | {"nobody"})]
    by_id += [{"generation_id": name, "principal": "you"} for name in sorted(names)[:3]]
    listed: list[dict[str, Any]] = [{}, {"limit": 2}, {"after": len(events) // 2}, {"after": 5, "limit": 1}]
    listed += [{"principal": "me"}, {"principal": "me", "limit": 1}, {"principal": "none"}]
    tagged = [{"tag": tag, **more} for tag in ("t", "g1", "x") for more in ({}, {"limit": 1}, {"principal": "you"})]
    return {str(each): each for each in (*by_id, *listed, *tagged)}


def words(events: Sequence[Event]) -> list[str]:
    return [*map(str, range(len(events) + 2)), "t", "g1", "g2", "nobody", "x"]


def filters() -> list[tuple[frozenset[str] | None, str | None]]:
    kinds = [
        None,
        frozenset({"SteeringChanged"}),
        frozenset({"GenerationStarted", "GenerationFinished", "SaeAttached"}),
    ]
    return [(types, sae_id) for types in kinds for sae_id in (None, *SAES, "none")]


def moments(events: Sequence[Event]) -> list[str]:
    return [
        *sorted({event.time for event in events})[::3],
        "2025-01-01T00:00:00.000000Z",
        "2027-01-01T00:00:00.000000Z",
    ]
