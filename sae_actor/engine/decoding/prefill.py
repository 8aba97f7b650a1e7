"""How the prompts of a step share its prompt tokens: short ones first, and none is passed over for long.

In a step the prompt that was passed over longest has half of the tokens, the shortest of the others the rest. A first
piece that cannot be cut may take a whole step; the step after it then belongs to the shortest. So a short prompt waits
for one step of a long one, and a long one goes on in every second step at the latest once it is its turn.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Prompt(NamedTuple):
    """A prompt of which some is still to be run."""

    of: Hashable
    left: int
    """Tokens."""
    fewest: int
    """It cannot be cut shorter than this in the next step."""
    most: int
    """Nor be longer."""


class PromptShares:
    """Shares step after step, by what each prompt had before."""

    def __init__(self) -> None:
        self._step = 0
        self._had: dict[Hashable, int] = {}
        """Prompt → the last step in which it had something, or the one before it came."""
        self._shortest_next = False

    def share(self, prompts: Sequence[Prompt], tokens: int) -> dict[Hashable, int]:
        """Tokens of each prompt in the next step, where there are any. `prompts` in the order in which they came."""
        self._step += 1
        self._had = {each.of: self._had.get(each.of, self._step - 1) for each in prompts}
        if not prompts:
            return {}
        order = sorted(prompts, key=lambda each: each.left)
        given: dict[Hashable, int] = {}
        room = tokens
        longest = None if self._shortest_next else min(order, key=lambda each: self._had[each.of])
        self._shortest_next = False
        if longest is not None:
            order.remove(longest)
            half = (tokens + 1) // 2
            given[longest.of] = max(min(longest.most, half if order else tokens), longest.fewest)
            room -= given[longest.of]
            self._shortest_next = bool(order) and (given[longest.of] > half or room == 0)
        for each in order:
            count = max(min(each.most, room), each.fewest)
            # What cannot be cut so short waits, unless it has the step for itself.
            if room > 0 and (count <= room or room == tokens):
                given[each.of] = count
                room -= count
        if longest is not None and room > 0:
            given[longest.of] += min(room, longest.most - given[longest.of])
        self._had.update(dict.fromkeys(given, self._step))
        return given
