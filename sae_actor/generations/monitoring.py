"""The stream of monitored SAEs during generation: transient events `activations`, never recorded.

The engine reads a monitored SAE at one position of a generation at a time, at most every `EVERY_SECONDS`. All
generations together publish at most `PER_SECOND` events; more are dropped. So the cost of monitoring is bounded, and a
generation never waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

from msgspec.structs import replace

from ..domain.state import AttachmentState, State
from ..domain.structs import filled
from ..limits import TokenBucket
from ..ports import Activations, Watch, labelled
from ..subscriptions import Broadcast
from .running import RunningGeneration

EVERY_SECONDS = 0.2
"""The least time between two readings of one SAE in one generation."""
PER_SECOND = 20.0
BURST = 20.0


def watches(state: State) -> tuple[Watch, ...]:
    """Readings that a new generation gets besides its own: every monitored SAE that is attached."""
    return tuple(_watch(attachment) for attachment in state.attached if attachment.monitoring is not None)


def _watch(attachment: AttachmentState) -> Watch:
    assert attachment.monitoring is not None
    return filled(Watch, attachment.monitoring, sae=attachment.active(), every_seconds=EVERY_SECONDS)


LabelsOf: TypeAlias = Callable[[str], Awaitable[Mapping[int, str]]]
"""SAE → the labels of its features."""


async def unlabelled(_: str) -> Mapping[int, str]:
    return {}


class Monitors:
    """Publishes the generations' readings while their SAE is monitored."""

    def __init__(self, broadcast: Broadcast, labels: LabelsOf) -> None:
        self._broadcast = broadcast
        self._labels = labels
        self._allowance = TokenBucket(PER_SECOND, BURST, asyncio.get_running_loop().time)

    async def follow(
        self, generation: RunningGeneration, prompt: Sequence[str | None], state: Callable[[], State]
    ) -> None:
        """Publish the readings of monitored SAEs, and remove them from the tokens.

        They come after the readings that the request asked for. prompt: the text of each of its tokens, None where it
        is not known.
        """
        own, at, texts = len(generation.started.watched), 0, [*prompt]
        while await generation.stream.has(at):
            token = generation.made[at]
            await self._publish(generation.started.generation_id, token.activations[own:], texts, state())
            generation.made[at] = replace(token, activations=token.activations[:own])
            texts.append(token.text)
            at += 1

    async def _publish(
        self, generation_id: str, readings: Sequence[Activations], texts: Sequence[str | None], state: State
    ) -> None:
        """Publish the newest position of each reading. texts: the text of every token so far."""
        for each in readings:
            attachment = state.attachment(each.sae_id)
            if attachment is None or attachment.monitoring is None or not self._allowance.take():
                continue
            position = each.first + len(each.rows) - 1
            event = {
                "generation_id": generation_id,
                "sae_id": each.sae_id,
                "position": position,
                "token": texts[position],
                "features": labelled(each.rows[-1], await self._labels(each.sae_id)),
            }
            self._broadcast.announce("activations", event)
