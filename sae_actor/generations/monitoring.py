"""The stream of monitored SAEs during generation: transient events `activations`, never recorded.

The engine reads a monitored SAE at one position of a generation at a time, at most every `EVERY_SECONDS`. All
generations together publish at most `PER_SECOND` events; more are dropped. So the cost of monitoring is bounded, and a
generation never waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..domain.state import AttachmentState, State
from ..limits import TokenBucket
from ..ports import Activations, Watch
from ..subscriptions import Broadcast

EVERY_SECONDS = 0.2
"""Between two readings of one SAE in one generation."""
PER_SECOND = 20.0
BURST = 20.0


def watches(state: State) -> tuple[Watch, ...]:
    """Readings that a new generation gets besides its own: every monitored SAE that is attached."""
    return tuple(_watch(attachment) for attachment in state.attached if attachment.monitoring is not None)


def _watch(attachment: AttachmentState) -> Watch:
    assert attachment.monitoring is not None
    wanted = attachment.monitoring
    return Watch(
        sae=attachment.active(),
        top_k=wanted.top_k,
        features=wanted.features,
        exclude=wanted.exclude,
        every_seconds=EVERY_SECONDS,
    )


class Monitors:
    """Publishes the generations' readings while their SAE is monitored."""

    def __init__(self, broadcast: Broadcast) -> None:
        self._broadcast = broadcast
        self._allowance = TokenBucket(PER_SECOND, BURST, asyncio.get_running_loop().time)

    def tell(
        self, generation_id: str, told: Sequence[Activations], written: Sequence[str | None], state: State
    ) -> None:
        """Publish the newest position of each reading.

        written: the text of each token so far, by position.
        """
        for each in told:
            attachment = state.attachment(each.sae_id)
            if attachment is None or attachment.monitoring is None or not self._allowance.take():
                continue
            position = each.first + len(each.rows) - 1
            event = {
                "generation_id": generation_id,
                "sae_id": each.sae_id,
                "position": position,
                "token": written[position],
                "features": each.rows[-1],
            }
            self._broadcast.announce("activations", event)
