"""One text scored under several interventions, chunk by chunk, so that each can be compared with the baseline.

Logits of a whole text are many: [tokens, vocabulary]. So nobody goes on to the next chunk before all have run this one,
and what the baseline says of it is dropped then. They share a step if there is room, and take one after another if not.
Equal ones are run once. Of those that edit nothing in the prompt one runs it for all; they go on with its keys and
values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from msgspec import Struct

from ...errors import InternalError
from ...ports import GenerationRequest, GenerationStream
from ..interventions.positions import ranges_of
from .kv_cache import KVCache
from .scores import Reference


class Member(Protocol):
    """A text that runs next to others (`Generation`)."""

    over: bool
    streams: tuple[GenerationStream, ...]
    given: tuple[int, ...]
    request: GenerationRequest
    kept: KVCache | None
    spares_prompt: bool
    """It may share the pass over its prompt."""

    def end_with(self, error: Exception) -> None: ...

    @property
    def at(self) -> int: ...

    @property
    def at_once(self) -> int: ...

    @property
    def most_rows(self) -> int: ...


T = TypeVar("T", bound=Member)


class Alike(Struct, frozen=True):
    """Requests that come to the same, and are computed once."""

    request: GenerationRequest
    """The one that needs the most SAEs."""
    streams: tuple[GenerationStream, ...]
    uses: frozenset[int] = frozenset()
    """attach_position of every SAE that another one of them needs."""


def alike(
    requests: Sequence[GenerationRequest], streams: Sequence[GenerationStream], baseline: int | None
) -> list[Alike]:
    """The different ones, that of the baseline first."""
    sets: dict[object, list[int]] = {}
    first = [] if baseline is None else [baseline]
    for at in (*first, *(n for n in range(len(requests)) if n != baseline)):
        each = requests[at]
        effective = tuple(sae for sae in each.intervention if sae.changes_text)
        sets.setdefault((effective, each.deterministic, each.details), []).append(at)
    return [
        Alike(
            max((requests[at] for at in some), key=lambda each: len(each.saes)),
            tuple(streams[at] for at in some),
            frozenset(sae.attach_position for at in some for sae in requests[at].saes),
        )
        for some in sets.values()
    ]


def parties(sets: Sequence[Alike], most: int, *, compared: bool) -> list[list[Alike]]:
    """At most so many (at least two) that run together. compared: with the first one, which is then in each party; from
    the second one on nobody reads it."""
    if not compared:
        return [[each] for each in sets]
    baseline, *others = sets
    again = Alike(baseline.request, (), baseline.uses)
    size = max(1, most - 1)
    found = [list(others[start : start + size]) for start in range(0, len(others), size)] or [[]]
    return [[baseline if at == 0 else again, *some] for at, some in enumerate(found)]


def spares_prompt(request: GenerationRequest) -> bool:
    """Of a text to score, with a continuation: whether nothing of its prompt is edited."""
    prompt = len(request.token_ids)
    if request.scoring is None or len(request.given) == prompt or request.deterministic:
        return False
    return all(
        sae.mode == "steer"
        and all(
            first >= prompt for edit in sae.steering for first, _ in ranges_of(edit.positions, prompt, request.turns)
        )
        for sae in request.intervention
        if sae.changes_text
    )


class SideBySide(Generic[T]):
    """The texts of one party."""

    def __init__(self, *, compared: bool) -> None:
        self.members: list[T] = []
        """In the order in which they run; with `compared`, the baseline first."""
        self._compared = compared
        self._reference: Reference | None = None

    @property
    def living(self) -> list[T]:
        return [each for each in self.members if not each.over]

    def given_up(self, text: T) -> bool:
        """Nobody reads any of them any more; or, of a baseline that is run for the others' sake, those have ended."""
        if not text.streams:
            return all(each.over for each in self.members if each.streams)
        return all(stream.stop_requested for each in self.members for stream in each.streams)

    def due(self, fits: Callable[[T], bool], *, forks: bool = False) -> list[T]:
        """Those that have to run the chunk that is to be run now, in order: of these, `fits` says whose turn it is.
        Nobody is compared before the baseline has run it. forks: as `riders` has it."""
        if not self.halfway:  # a new chunk
            self._reference = None
        at = min(self._ats, default=0)
        for each in self.living:
            if each.kept is not None and each.kept.length != each.at and not self._rides(each, forks=forks):
                each.end_with(InternalError("the text that its prompt was shared with has ended"))
        behind = [each for each in self.living if each.at == at]
        if self._compared and behind and behind[0] is self.members[0] and not fits(behind[0]):
            return []
        return [each for each in behind if fits(each) and not self._rides(each, forks=forks)]

    def riders(self, text: T, *, forks: bool) -> list[T]:
        """Those for which `text` runs the prompt too. forks: they can go on with its keys and values."""
        return [each for each in self.living if self._rides(each, forks=forks) and text is self._leader(each)]

    def _rides(self, text: T, *, forks: bool) -> bool:
        return forks and text.at < len(text.request.token_ids) and self._leader(text) not in (text, None)

    def _leader(self, text: T) -> T | None:
        """Who runs the prompt for it."""
        if not text.spares_prompt:
            return None
        sharing = (each for each in self.living if each.spares_prompt and each.kept is not None)
        return next((each for each in sharing if each.kept is not None and each.kept.length == text.at), None)

    def chunk(self, most: int, sharing: int, *, forks: bool = False) -> int:
        """How many tokens each of them runs in this chunk, of at most `most` for `sharing` together, if it may be cut
        so short."""
        living, ats = self.living, self._ats
        if len(ats) > 1:
            return max(ats) - min(ats)
        least = max(each.at_once for each in living)
        shared = any(self._rides(each, forks=forks) for each in living)
        end = len(living[0].request.token_ids if shared else living[0].given)
        return min(end - min(ats), max(least, min(most // sharing, *(each.most_rows for each in living))))

    @property
    def _ats(self) -> set[int]:
        """Where they are; those that have ended are at the end, or have failed and do not matter."""
        return {each.at for each in self.members if not each.over or each.at == len(each.given)}

    @property
    def halfway(self) -> bool:
        """Some have run the chunk, and some have not."""
        return len(self._ats) > 1

    def leave(self) -> None:
        """One has ended; with the last one, hold nothing any more."""
        if not self.living:
            self._reference = None
            self.members = []

    def refers(self, text: T) -> bool:
        """Whether the others are compared with it."""
        return self._compared and text is self.members[0]

    def keep(self, reference: Reference | None) -> None:
        """What the baseline says of the chunk, if it is that."""
        self._reference = reference or self._reference

    def reference(self, text: T) -> Reference | None:
        """What to compare it with. `InternalError` if the baseline has failed."""
        if not self._compared or self.refers(text):
            return None
        if self._reference is None:
            raise InternalError("the baseline that this is compared with has failed")
        return self._reference
