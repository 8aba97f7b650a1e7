"""Logs with a known content for the offline commands: told as stories of the rules, written by the real SqliteLog."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from sae_actor.domain import events as ev
from sae_actor.domain.events import Event, Receipt, Sampling
from sae_actor.domain.messages import AdmitGeneration
from sae_actor.domain.refs import Edit, Span
from sae_actor.eventlog import SqliteLog
from tests.domain.dsl import STARTED, A, Story, attached, cached, given, loaded

FIRST = Edit(feature=3, strength=7.5, exclude=("sink",))
SECOND = Edit(feature=4, strength=0.0, method="scale", positions=Span(from_=1, to=9), exclude=())
SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_tokens=16, seed=7, stop=("\n",))
ENVIRONMENT = {"torch": "2.13.0", "model_files": {"model.safetensors": "c" * 64}, "tokenizer_sha256": "d" * 64}


def admitted(story: Story, name: str, **more: object) -> Story:
    """The story with the beginning of a text, as the rules admit it."""
    asked = AdmitGeneration(
        generation_id=name,
        kind="completion",
        sampling=SAMPLING,
        tokens_prompt=5,
        **more,  # type: ignore[arg-type]  # each test names its own
    )
    return story.when(asked)


def ended(story: Story, name: str, **more: object) -> Story:
    """The story with the end of that text: 5 tokens of prompt and 3 generated, edited but for the first."""
    started = next(
        (event.position, payload)
        for event in story.events
        if isinstance(payload := event.payload(), ev.GenerationStarted) and payload.generation_id == name
    )
    end: dict[str, object] = {
        "finish_reason": "stop",
        "receipt": Receipt(
            tokens_prompt=5, tokens_generated=3, tokens_edited=6, tokens_excluded=1, mean_relative_norm=0.25
        ),
        "edited": ((1, 7),),
        "excluded": ((0, 1),),
        "salt": "0" * 32,
        "prompt_sha256": "1" * 64,
        "output_sha256": "2" * 64,
        **more,
    }
    return story.and_then(
        ev.GenerationFinished(
            generation_id=name,
            started_position=started[0],
            intervention_sha256=started[1].intervention_sha256,
            **end,  # type: ignore[arg-type]  # each test names its own
        )
    )


def a_life() -> Story:
    """1 start, 2–3 model, 4–5 SAE a, 6–7 attached, 8 steered, 9–10 a text, 11 steered anew, 12–13 a text of it."""
    story = given(STARTED, loaded(environment=ENVIRONMENT), cached("a"), attached(A, steering=(FIRST,)))
    story = ended(admitted(story, "gen-1", tag="first"), "gen-1")
    story = story.and_then(ev.SteeringChanged(sae_id=A, features=(FIRST, SECOND)))
    return ended(admitted(story, "gen-2"), "gen-2")


def write(folder: Path, story: Story, principals: Mapping[int, str] | None = None) -> list[Event]:
    """Put a story on disk; the events as the log has them. Who is not named in `principals` is `me`."""
    drafts = [
        replace(event, principal=(principals or {}).get(event.position, event.principal)) for event in story.events
    ]

    async def store() -> list[Event]:
        log = await SqliteLog.open(folder)
        try:
            return list(await log.append(drafts, expected=0))
        finally:
            await log.close()

    return asyncio.run(store())
