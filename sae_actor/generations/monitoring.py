"""What is streamed of monitored SAEs while texts are made: passing events `activations`, never on record.

The engine reads a monitored SAE at one position of a text at a time, at most every `EVERY_SECONDS`; over all texts
together at most `PER_SECOND` events go out, and what is above that is dropped. So monitoring costs the same whatever
runs, and a text never waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..actor.token_bucket import TokenBucket
from ..domain.state import AttachmentState, State
from ..ports import Activations, Watch
from ..subscriptions import Broadcast

EVERY_SECONDS = 0.2
"""Between two readings of one SAE in one text."""
PER_SECOND = 20.0
BURST = 20.0


def watches(state: State) -> tuple[Watch, ...]:
    """What a text that begins now is read by, beside what it asks for itself: every monitored SAE that is attached."""
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
    """Announces what the texts' readings bring, as long as someone wants it."""

    def __init__(self, broadcast: Broadcast) -> None:
        self._broadcast = broadcast
        self._clock = asyncio.get_running_loop().time
        self._allowance = TokenBucket(PER_SECOND, BURST, self._clock())

    def tell(
        self, generation_id: str, told: Sequence[Activations], written: Sequence[str | None], state: State
    ) -> None:
        """Announce the newest position of each reading.

        written: the text of each token so far, by position.
        """
        for each in told:
            attachment = state.attachment(each.sae_id)
            if attachment is None or attachment.monitoring is None or not self._allowance.take(self._clock()):
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
