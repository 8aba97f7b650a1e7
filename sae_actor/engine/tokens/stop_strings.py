"""Stop strings: searched in the shown text, and in what is left out of it, before anything is delivered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .reasoning import RunKind, TextRun

_SHOWN = (RunKind.SAID, RunKind.THOUGHT)
_WHOLE = (RunKind.MARK, RunKind.HIDDEN)
"""Runs that a stop string holds as a whole, or not at all."""

Found = tuple[int, int, str]
"""Places [from, to), and the stop string there."""


class StopStrings:
    """Cuts an answer before the first stop string, and holds back what could become one.

    A stop string is searched in the shown text, in content and reasoning separately. It is also searched in the answer
    as the model wrote it, if it holds at least one whole mark or hidden token there: `end` is not found in `<|end|>`,
    nor `final` in a channel's name.
    """

    def __init__(self, stop: Sequence[str], *, hidden: bool = True, included: bool = False) -> None:
        """hidden: search what is left out of the text. included: the stop string is shown."""
        self._stop = stop
        self._hidden = hidden
        self._included = included
        self._shown, self._written = _Search(stop), _Search(stop)
        self._field = RunKind.SAID
        """Of what is shown last."""
        self._place = 0
        """Characters written so far."""
        self._after = 0
        """What was complete by then does not count."""
        self._whole: list[tuple[int, int]] = []
        """Where whole runs are, as far back as a stop string may reach."""
        self._held: list[tuple[int, TextRun]] = []

    def push(self, runs: Sequence[TextRun], *, counts: bool = True) -> tuple[list[TextRun], bool]:
        """What may be delivered of the answer so far, and whether a stop string was met (the rest is dropped). counts:
        a stop string that is complete only with these runs is one."""
        if not self._stop:
            return [*runs], False
        for run in runs:
            self._add(run)
        if not counts:
            self._after = self._place
        found = min(self._found(), default=None)
        if found is not None:
            return self._cut(found[0], found[2]), True
        return self._release(min(self._shown.trim(self._place), self._written.trim(self._place))), False

    def flush(self) -> list[TextRun]:
        """What was held back and did not become a stop string."""
        return self._release(None)

    def _add(self, run: TextRun) -> None:
        text, kind, place = run.text, run.kind, self._place
        if kind is not RunKind.HIDDEN:
            self._held.append((place, run))
        if kind is RunKind.JOINT or (kind is RunKind.HIDDEN and not self._hidden):
            return
        if kind is RunKind.MARK or (kind in _SHOWN and kind is not self._field):
            self._shown.clear()
        if kind in _SHOWN:
            self._field = kind
            self._shown.push(text, place)
        if kind in _WHOLE:
            self._whole.append((place, place + len(text)))
        self._written.push(text, place)
        self._place += len(text)

    def _found(self) -> Iterator[Found]:
        yield from self._shown.found(self._after)
        first = self._written.first(self._place)
        self._whole = [each for each in self._whole if each[0] >= first]
        if not self._whole:
            return
        for start, end, stop in self._written.found(self._after):
            if any(start <= a and b <= end for a, b in self._whole):
                yield start, end, stop

    def _cut(self, start: int, stop: str) -> list[TextRun]:
        shown = self._release(start)
        self._held.clear()
        return [*shown, TextRun(stop, self._field)] if self._included else shown

    def _release(self, limit: int | None) -> list[TextRun]:
        """Deliver everything before `limit`; None: everything."""
        given: list[TextRun] = []
        held: list[tuple[int, TextRun]] = []
        for place, run in self._held:
            length = 0 if run.kind is RunKind.JOINT else len(run.text)
            if limit is None or place + length < limit or (length and place + length == limit):
                given.append(run)
            elif place >= limit:
                held.append((place, run))
            else:
                given.append(run._replace(text=run.text[: limit - place]))
                held.append((limit, run._replace(text=run.text[limit - place :])))
        self._held = held
        return given


class _Search:
    """Stop strings in a text that arrives in pieces, each character with its place in the whole."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._text = ""
        self._places: list[int] = []

    def push(self, text: str, place: int) -> None:
        self._text += text
        self._places += range(place, place + len(text))

    def clear(self) -> None:
        self._text, self._places = "", []

    def first(self, default: int) -> int:
        """Where the searched text begins."""
        return self._places[0] if self._places else default

    def found(self, after: int) -> Iterator[Found]:
        """All stop strings that end after `after`."""
        for each in self._stop:
            at = self._text.find(each)
            while at >= 0:
                end = self._places[at + len(each) - 1] + 1
                if end > after:
                    yield self._places[at], end, each
                at = self._text.find(each, at + 1)

    def trim(self, default: int) -> int:
        """Keep what may become a stop string; where that begins, `default` for nothing."""
        text = self._text
        kept = max((n for each in self._stop for n in range(1, len(each)) if text.endswith(each[:n])), default=0)
        self._text, self._places = text[len(text) - kept :], self._places[len(text) - kept :]
        return self.first(default)
