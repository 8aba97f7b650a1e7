"""One run under way: its texts, its rows, its place on the device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from ..domain.effects import RunEffect
from ..domain.measuring.waiting import waits_for
from ..domain.rules.attachments import model_and_position
from ..domain.state import AttachmentState, State
from ..domain.views.difference import environment_sha256
from ..errors import InternalError, SAENotAttachedError
from ..generations import Generations
from ..generations.monitoring import LabelsOf
from ..ports import Engine, OnProgress, Progress
from .store import RunFile

T = TypeVar("T")

GROUP = 64
"""Texts of a group."""


async def in_thread(work: Callable[[], T]) -> T:
    """`work` in a thread. A cancelled caller waits for it: what it writes is there, or is not, but not later."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class Job:
    """What a kind of run works with."""

    def __init__(
        self,
        effect: RunEffect,
        file: RunFile,
        engine: Engine,
        state: Callable[[], State],
        progress: OnProgress,
        *,
        generations: Generations | None = None,
        labels: LabelsOf | None = None,
        side_by_side: int = 16,
    ) -> None:
        """side_by_side: how many texts are made or read at a time."""
        self.side_by_side = side_by_side
        self._generations = generations
        self._labels = labels
        self._file_turn = asyncio.Lock()
        self.effect = effect
        self.file = file
        self.engine = engine
        self._state = state
        self._progress = progress

    @property
    def state(self) -> State:
        return self._state()

    @property
    def generations(self) -> Generations:
        if self._generations is None:
            raise InternalError("no texts are made here")
        return self._generations

    async def labels(self, sae_id: str) -> Mapping[int, str]:
        """Of the SAE's features."""
        return {} if self._labels is None else await self._labels(sae_id)

    async def in_file(self, work: Callable[[RunFile], T]) -> T:
        """`work` with the run's file, in a thread, one at a time."""
        async with self._file_turn:
            return await in_thread(lambda: work(self.file))

    @property
    def model_position(self) -> int:
        """Of the model's request: `ModelNotLoadedError` without one."""
        return model_and_position(self._state())[1]

    @property
    def positions(self) -> int:
        """How many tokens a text may have."""
        facts, _ = model_and_position(self._state())
        return min(facts.context_length, facts.cache_positions or facts.context_length)

    def count(self, role: str) -> int:
        return next((each.count for each in self.effect.texts if each.role == role), 0)

    def attached(self, sae_id: str) -> AttachmentState:
        """The SAE as it is attached now. `SAENotAttachedError` while the run waits."""
        state = self._state()
        run, attachment = state.runs.get(self.effect.run_id), state.attachment(sae_id)
        if run is None or attachment is None or (why := waits_for(run, state)) is not None:
            raise SAENotAttachedError(f"the run waits: {why if run and attachment else 'its SAE is gone'}")
        return attachment

    async def environment(self) -> str:
        """The digest of the environment of now, which is kept with the rows."""
        model = self._state().model
        if model is None or model.facts is None:
            raise SAENotAttachedError("the run waits: no model is loaded")
        facts = model.facts
        digest = environment_sha256(facts.environment)
        if self.file.kept(f"environment {digest}") is None:
            known = {f"environment {digest}": msgspec.json.encode(facts.environment)}
            await in_thread(lambda: self.file.commit(kept=known))
        return digest

    def width(self, sae_id: str) -> int:
        """How many features the SAE has."""
        record = self._state().saes.get(sae_id)
        if record is None or record.sae is None:
            raise SAENotAttachedError("the run waits: its SAE is gone")
        return record.sae.d_sae

    @property
    def context_length(self) -> int:
        model = self._state().model
        return 0 if model is None or model.facts is None else model.facts.context_length

    @property
    def adds_bos(self) -> bool:
        model = self._state().model
        return model is not None and model.facts is not None and model.facts.adds_bos is True

    async def contexts(self, first: int, length: int, left: int | None) -> list[tuple[int, int, tuple[int, ...]]]:
        """The contexts of the group that begins with text `first`: text, position of its first token in the text, ids.
        A longer text goes on in further contexts, each begun as a text is. `left`: at most this many tokens."""
        length = min(length, self.context_length)
        found: list[tuple[int, int, tuple[int, ...]]] = []
        for number, item in enumerate(await in_thread(lambda: self.file.texts("texts", first, GROUP)), first):
            ids = (await self.engine.tokenize(item.asked, any_length=True)).token_ids
            begun = ids[:1] if self.adds_bos and length > 2 else ()
            at = 0
            while at < len(ids):
                start = begun if at else ()
                piece = start + ids[at : at + length - len(start)]
                if left is not None:
                    piece = piece[:left]
                    left -= len(piece)
                if len(piece) <= len(start):
                    return found
                found.append((number, at - len(start), piece))
                at += length - len(start)
        return found

    def announce(self, done: int, total: int, phase: str = "measuring", reason: str | None = None) -> None:
        self._progress(
            Progress(kind="run", subject=self.effect.run_id, phase=phase, done=done, total=total, reason=reason)
        )
