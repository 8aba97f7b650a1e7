"""Whose the next step is, and how the prompts in it share its prompt tokens.

A step is that of all who share it, or of one that must run alone. They take turns, so that neither waits for more than
one step of the other; but a prompt that a shared step had no room for has the step after it. So one that runs alone
waits for two shared steps at most. Those that run alone take turns by share, so that nobody's many hold up another's
one, and within a share in order. Texts to score are a share of their own.

Of prompts short ones come first, and none is passed over for long. In a step the prompt that was passed over longest
has half of the tokens, the shortest of the others the rest. A first piece that cannot be cut may take a whole step; the
step after it then belongs to the shortest. So a short prompt waits for one step of a long one, and a long one goes on
in every second step at the latest once it is its turn.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from ...ports import GenerationRequest


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

    @property
    def owes(self) -> bool:
        """The next step that is shared is for what the last one left no room for."""
        return self._shortest_next

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


class Party(Protocol):
    """Those that run with a text to score (`SideBySide`)."""

    @property
    def halfway(self) -> bool: ...


class RunsAlone(Protocol):
    """A text that runs alone in its steps (`Generation`)."""

    request: GenerationRequest

    @property
    def beside(self) -> Party: ...


T = TypeVar("T", bound=RunsAlone)


class Turns:
    """Step after step, by who had the ones before."""

    def __init__(self) -> None:
        self._step = 0
        self._alone_next = False
        self._had: dict[str | None, int] = {}
        """Share → its last step alone, or the one before it came."""

    def alone(self, texts: Sequence[T], *, others: bool, owed: bool) -> T | None:
        """Of these, which could run alone, the one whose the next step is; None: that is shared. others: there are some
        to share it. owed: a prompt was left out of the shared step before."""
        if not texts or (others and (owed or not self._alone_next)):
            self._alone_next = True
            return None
        self._step += 1
        self._alone_next = False
        shares: dict[str | None, list[T]] = {}
        for text in texts:
            shares.setdefault(None if text.request.scoring is not None else text.request.share, []).append(text)
        self._had = {share: self._had.get(share, self._step - 1) for share in shares}
        share = min(shares, key=self._had.__getitem__)
        self._had[share] = self._step
        # What is in the middle of a chunk holds the baseline's logits.
        return next((each for each in shares[share] if each.beside.halfway), shares[share][0])
