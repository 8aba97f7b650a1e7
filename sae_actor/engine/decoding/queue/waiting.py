"""Texts that wait for their first step: which of them is next.

Those of requests are, in turn by share; after them texts to score, in turn too; and what runs ask for when nothing else
is there. A share that may have no more at a time is passed over until it may.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from ....limits import FairQueue
from ..generation import Generation


class WaitingTexts:
    """Belongs to the device thread. A step looks at `size` before it asks for anything."""

    def __init__(self) -> None:
        self._texts = FairQueue[Generation]()
        self._scored = FairQueue[Generation]()
        self.most: Mapping[str, int] = {}
        """How many texts of a share may run at a time; those that run side by side count once. Replaced as a whole, by
        any thread."""
        self._behind: deque[Generation] = deque()
        """Of runs."""
        self.size = 0
        """Read in every step of a scheduler, so no call."""

    def __iter__(self) -> Iterator[Generation]:
        for queue in (self._texts, self._scored):
            if queue.size:
                yield from queue
        yield from self._behind

    def add(self, text: Generation) -> None:
        self.size += 1
        if text.request.background:
            self._behind.append(text)
        elif text.request.scoring is None:
            self._texts.push(text.request.share, text)
        else:
            self._scored.push(text.request.share, text)

    def next(
        self, running: Collection[Generation], fits: Callable[[Sequence[Generation], Collection[Generation]], bool]
    ) -> list[Generation]:
        """Take those that run next, side by side; none if they have to wait for some of `running`. fits: whether there
        is room for the first next to the second."""
        most, queues = self.most, [queue for queue in (self._texts, self._scored) if queue.size]
        if queues:
            others = [text for text in running if not text.request.background]
            beside = {text.beside: text.request.share for text in others} if most else {}
            for queue in queues:
                if (share := queue.turn(most, Counter(beside.values()))) is not None:
                    party = queue.first(share).beside.living
                    return self._taken(queue.take(share, len(party))) if fits(party, others) else []
        elif self._behind and all(text.request.background for text in running):
            party = self._behind[0].beside.living
            return self._taken([self._behind.popleft() for _ in party]) if fits(party, running) else []
        return []

    def _taken(self, texts: list[Generation]) -> list[Generation]:
        self.size -= len(texts)
        return texts

    def keep(self, which: Callable[[Generation], bool]) -> None:
        """Drop all others."""
        self._texts.keep(which)
        self._scored.keep(which)
        self._behind = deque(filter(which, self._behind))
        self.size = self._texts.size + self._scored.size + len(self._behind)

    def clear(self) -> None:
        self._texts.clear()
        self._scored.clear()
        self._behind.clear()
        self.size = 0
