"""`Finder`: look-ups in a log, by its index as far as that goes, from there on by the log itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

from ...domain.events import Event, GenerationFinished, GenerationStarted, payload_of
from ...domain.events.mentions import names_sae, sae_ids
from ...domain.views.explanation import Explaining
from ...domain.views.naming import TYPES, Named
from ...domain.views.recorded import Recorded
from ...limits import in_turns
from .database import IndexDatabase
from .entries import key_of
from .histories import PAGE, Histories, read_at
from .questions import TextPlace
from .readable import Readable
from .tables import BLOCK, UnfitIndexError

T = TypeVar("T")

SAME_KEY = 16
"""Generations that may share a key; more do not."""


class Finder:
    """While the index is not trusted, all of the log is looked through; the answers are the same.

    grown: set, for who keeps the index up, when it turned out to be wrong.
    """

    def __init__(self, log: Readable, index: IndexDatabase, grown: asyncio.Event | None = None) -> None:
        self.log = log
        self.index = index
        self._histories = Histories(log, self.index)
        self._grown = grown

    @classmethod
    def without_index(cls, log: Readable) -> Finder:
        index = IndexDatabase(None)
        index.close()
        return cls(log, index)

    @property
    def upto(self) -> int:
        """The last position for which the index is asked."""
        return min(self.index.head.position, self.log.head.position) if self.index.trusted else 0

    async def _found(self, look: Callable[[int], Awaitable[T]]) -> T:
        try:
            return await look(self.upto)
        except UnfitIndexError:
            self.index.distrust()
            self._histories = Histories(self.log, self.index)  # what they keep may be wrong too
            if self._grown is not None:
                self._grown.set()
            return await look(0)

    # — events —

    async def page(
        self, after: int, until: int, rows: int, types: Collection[str] | None, sae_id: str | None
    ) -> tuple[list[Event], int]:
        """The next events in (after, until] of these types that name this SAE, of `rows` that are looked at; and how
        far that goes."""

        async def look(upto: int) -> tuple[list[Event], int]:
            if upto <= after or (types is None and sae_id is None):
                return await self._read(after, until, rows, types, sae_id)
            end = min(until, upto)
            positions = await asyncio.to_thread(self.index.positions, types, sae_id, after, end, rows)
            events = await read_at(self.log, positions)
            for event in events:
                if not (types is None or event.type in types) or not _names(event, sae_id):
                    raise UnfitIndexError(f"event {event.position} is not what was looked for")
            return events, positions[-1] if len(positions) == rows else end

        return await self._found(look)

    async def skipping(
        self, after: int, until: int, rows: int, types: Collection[str] | None, sae_id: str | None
    ) -> tuple[list[Event], int] | None:
        """As `page`; None where the log itself would have to be read."""
        return await self.page(after, until, rows, types, sae_id) if self.upto > after else None

    async def _read(
        self, after: int, until: int, rows: int, types: Collection[str] | None, sae_id: str | None
    ) -> tuple[list[Event], int]:
        page = await self.log.read(after, rows, None if types is None else sorted(types))
        end = page[-1].position if len(page) == rows else until
        found = [e for e in page if e.position <= until and (sae_id is None or names_sae(bytes(e.data), sae_id))]
        return found, min(end, until)

    async def newest(self, kind: str, after: int, until: int, window: int) -> tuple[list[Event], int]:
        """The last events in (after, until] of a type, the newest first; and the position before which others may be.
        window: so many positions are read at a time."""

        async def look(upto: int) -> tuple[list[Event], int]:
            if until > upto:
                first = max(after, upto, until - window)
                page = await self.log.read(first, until - first)
                return [event for event in reversed(page) if event.type == kind], first
            positions = await asyncio.to_thread(self.index.newest, kind, after, until, window)
            events = await read_at(self.log, positions[::-1])
            if any(event.type != kind for event in events):
                raise UnfitIndexError(f"not all that it says are of type {kind}")
            return events[::-1], positions[-1] - 1 if len(positions) == window else after

        return await self._found(look)

    async def last_by(self, time: str, head: int) -> int:
        """The last event up to `head` that was written at a time or before; a clock may have gone back in between."""

        async def look(upto: int) -> int:
            last = await self._last_in(upto, head, time)
            if last or not upto:
                return last
            first = await asyncio.to_thread(self.index.last_block_by, time)
            if first is None:
                return 0
            last = await self._last_in(first, min(first + BLOCK, upto), time)
            if not last:
                raise UnfitIndexError("no event is as early as it says")
            return last

        return await self._found(look)

    async def _last_in(self, after: int, until: int, time: str) -> int:
        last = 0
        while after < until:
            page = await self.log.read(after, min(PAGE, until - after))
            if not page:
                break
            last = max((event.position for event in page if event.time <= time), default=last)
            after = page[-1].position
        return last

    # — generations —

    async def explained(self, make: Callable[[], Explaining], until: int) -> Explaining:
        """The generations that an `Explaining` is made for, as a log knows them that ends at `until`."""
        return await self._found(lambda upto: self._explained(make(), min(upto, until), until))

    async def named(self, of: str, until: int) -> Named:
        """The generations that a word means."""
        return await self._found(lambda upto: self._named(Named(of), of, min(upto, until), until))

    async def _explained(self, wanted: Explaining, upto: int, until: int) -> Explaining:
        after = wanted.after
        while upto and not wanted.complete:
            found = await self._candidates(wanted, after)
            texts = [text for text in found if text.began <= upto]
            for recorded in await self._recorded(texts, upto):
                if wanted.missing != 0 and _is_wanted(recorded, wanted):
                    wanted.keep(recorded)
            if len(texts) < _rows(wanted) or wanted.ids is not None:
                break
            after = texts[-1].began
        if not wanted.complete and upto < until:
            wanted.take_up(await self._histories.before(upto + 1, upto))
            await self._feed(wanted, upto, until)
        return wanted

    async def _candidates(self, wanted: Explaining, after: int) -> list[TextPlace]:
        def ask() -> list[TextPlace]:
            if wanted.ids is None:
                return self.index.texts(tag=wanted.tag, principal=wanted.principal, after=after, limit=_rows(wanted))
            given = (key_of(each) for each in wanted.ids)
            return sorted(
                text
                for key in given
                for text in self.index.texts(key=key, principal=wanted.principal, after=after, limit=SAME_KEY)
            )

        return await asyncio.to_thread(ask)

    async def _recorded(self, texts: Sequence[TextPlace], upto: int) -> list[Recorded]:
        """What the log has of generations. Raises `UnfitIndexError` if they are others."""
        positions = sorted({at for text in texts for at in (text.began, text.ended) if at is not None and at <= upto})
        events = {event.position: event for event in await read_at(self.log, positions)}
        found = []
        for text in texts:
            began, ended = events[text.began], None if text.ended is None else events.get(text.ended)
            types = [began.type, GenerationFinished.type if ended is None else ended.type]
            started, finished = payload_of(began), None if ended is None else payload_of(ended)
            if not isinstance(started, GenerationStarted):
                started = None
            if not isinstance(finished, GenerationFinished):
                finished = ended = None
            name = started.generation_id if started else finished.generation_id if finished else None
            if types != [*TYPES] or (name is not None and key_of(name) != text.key):
                raise UnfitIndexError(f"event {text.began} does not begin this generation")
            if finished is not None and finished.started_position != text.began:
                raise UnfitIndexError(f"event {text.ended} ends another generation")
            known = await self._histories.before(text.began, upto)
            found.append(
                Recorded(generation_id=name, known=known, began=began, started=started, ended=ended, finished=finished)
            )
        return found

    async def _feed(self, wanted: Explaining, after: int, until: int) -> None:
        upto = after
        while after < until:
            page = await self.log.read(after, min(PAGE, until - after))
            if not page:
                return
            async for event in in_turns(page, 64):
                if wanted.ids is not None and upto > 0 and event.type == GenerationFinished.type:
                    await self._keep_unreadable(wanted, event, upto)
                wanted.feed(event)
                if wanted.complete:
                    return
            after = page[-1].position
            await asyncio.sleep(0)

    async def _keep_unreadable(self, wanted: Explaining, event: Event, upto: int) -> None:
        """An end names a beginning that the index has, but that cannot be read."""
        finished = payload_of(event)
        if not isinstance(finished, GenerationFinished) or finished.generation_id not in (wanted.ids or ()):
            return
        if finished.started_position <= upto and finished.started_position not in wanted.found:
            text = await asyncio.to_thread(self.index.text, finished.started_position)
            for recorded in [] if text is None else await self._recorded([text], upto):
                if wanted.principal in (None, recorded.began.principal) and recorded.started is None:
                    wanted.keep(recorded)

    async def _named(self, named: Named, of: str, upto: int, until: int) -> Named:
        if upto:
            for event in await read_at(self.log, await self._naming(of, upto)):
                named.feed(event)
            named.erased = tuple(at for at in await asyncio.to_thread(self.index.nameless) if at <= upto)
        at = upto
        while at < until and not named.complete:
            page, at = await self._read(at, until, PAGE, TYPES, None)
            for event in page:
                named.feed(event)
                if named.complete:
                    break
            await asyncio.sleep(0)
        return named

    async def _naming(self, of: str, upto: int) -> list[int]:
        """Events that may say what a word means."""
        position = int(of) if of.isascii() and of.isdigit() and len(of) <= 18 else 0

        def ask() -> list[int]:
            texts = [*self.index.texts(key=key_of(of), limit=SAME_KEY), *self.index.texts(tag=of, limit=1)]
            if (at := self.index.text(position)) is not None:
                texts.append(at)
            ends = [position, *(text.began for text in texts), *(text.ended or 0 for text in texts)]
            return sorted({at for at in ends if 0 < at <= upto})

        return await asyncio.to_thread(ask)


def _is_wanted(text: Recorded, wanted: Explaining) -> bool:
    """Raises `UnfitIndexError` for one that was found by a tag or a principal of others; one whose payload was erased
    meanwhile has no tag any more, and two ids may have one key."""
    tag = wanted.tag if text.started is None else text.started.tag
    if wanted.tag not in (None, tag) or wanted.principal not in (None, text.began.principal):
        raise UnfitIndexError(f"event {text.began.position} begins another generation")
    return (wanted.ids is None or text.generation_id in wanted.ids) and (wanted.tag is None or text.started is not None)


def _rows(wanted: Explaining) -> int:
    return min(PAGE, PAGE if wanted.missing is None else max(1, wanted.missing))


def _names(event: Event, sae_id: str | None) -> bool:
    return sae_id is None or sae_id in sae_ids(bytes(event.data))
