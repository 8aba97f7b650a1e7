"""Texts that wait for their first step: which of them is next.

Those of requests are, in turn by share; after them texts to score, in the order in which they came; and what runs ask
for when nothing else is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

from ....limits import FairQueue
from ..generation import Generation


class WaitingTexts:
    """Belongs to the device thread. A step looks at `count` before it asks for anything."""

    def __init__(self) -> None:
        self.count = 0
        self._texts = FairQueue[Generation]()
        self._scored: deque[Generation] = deque()
        self._behind: deque[Generation] = deque()
        """Of runs."""

    def __iter__(self) -> Iterator[Generation]:
        if self._texts.size:
            yield from self._texts
        yield from self._scored
        yield from self._behind

    def add(self, text: Generation) -> None:
        self.count += 1
        if text.request.background:
            self._behind.append(text)
        elif text.request.scoring is None:
            self._texts.push(text.request.share, text)
        else:
            self._scored.append(text)

    def next(
        self, running: Collection[Generation], fits: Callable[[Sequence[Generation], Collection[Generation]], bool]
    ) -> list[Generation]:
        """Take those that run next, side by side; none if they have to wait for some of `running`. fits: whether there
        is room for the first next to the second."""
        if self._texts.size or self._scored:
            first = self._texts.first if self._texts.size else self._scored[0]
            running = [text for text in running if not text.request.background]
        elif self._behind and all(text.request.background for text in running):
            first = self._behind[0]
        else:
            return []
        party = first.beside.living
        return [self._take() for _ in party] if fits(party, running) else []

    def _take(self) -> Generation:
        self.count -= 1
        if self._texts.size:
            return self._texts.pop()
        return (self._scored or self._behind).popleft()

    def keep(self, which: Callable[[Generation], bool]) -> None:
        """Drop all others."""
        self._texts.keep(which)
        self._scored = deque(filter(which, self._scored))
        self._behind = deque(filter(which, self._behind))
        self.count = self._texts.size + len(self._scored) + len(self._behind)

    def clear(self) -> None:
        self.count = 0
        self._texts.clear()
        self._scored.clear()
        self._behind.clear()
