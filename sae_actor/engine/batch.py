"""The texts that run, and one step of them: all together in one forward pass where the model allows it.

Every text that makes tokens is in every step; prompts join in pieces of so many tokens a step, so that a long one does
not hold up the others. A text that has to be alone takes steps of its own in between, and so does every text of a
model that runs them in turn. A step that fails is tried again for each of its texts, so that one ends and not all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..domain.refs import FinishReason
from ..errors import DeviceLostError, SAEError
from .attention import Piece
from .decoding import Decoder
from .failures import explained
from .generation import InterventionGone, RunningText
from .hooks import HookFault, Place, beside
from .joins import Joins
from .sampling import choose_all


@dataclass(frozen=True)
class Limits:
    """How much may run at once."""

    running: int
    prompt_tokens: int
    """Of prompts, in one step, where they may be cut."""


class _Turn(NamedTuple):
    """What a text runs in a step."""

    text: RunningText
    piece: Piece


class Batch:
    """Belongs to the device thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._running: deque[RunningText] = deque()
        self._waiting: deque[RunningText] = deque()
        self._joins = Joins()
        self._decoder: Decoder | None = None
        self._cache_bytes = 0
        self._alone_next = False

    def use(self, decoder: Decoder | None, cache_bytes: int = 0) -> None:
        """Another model, or none: no text is running. Texts may take `cache_bytes` together."""
        self._decoder, self._cache_bytes = decoder, cache_bytes

    @property
    def cache_used(self) -> int:
        """Bytes of keys and values that are taken now."""
        decoder = self._decoder
        return 0 if decoder is None else decoder.nbytes

    @property
    def idle(self) -> bool:
        return not self._running

    def admit(self, text: RunningText) -> None:
        """Behind all that wait."""
        self._waiting.append(text)
        self.sweep()

    def end(self, which: Callable[[RunningText], bool], reason: FinishReason, error: SAEError | None = None) -> None:
        """End all texts that `which` holds for."""
        for text in (*self._running, *self._waiting):
            if which(text):
                text.finish(reason, error)
        self.sweep()

    def forget(self, attach_position: int) -> None:
        """An SAE leaves the device: hold nothing of it."""
        self.end(lambda text: attach_position in text.uses, "intervention_removed")
        for text in self._running:
            if text.applied is not None:
                text.applied.forget(attach_position)
        self._joins.clear()

    def fail(self, error: DeviceLostError) -> None:
        """The device is lost."""
        for text in (*self._running, *self._waiting):
            text.fail(DeviceLostError(error.detail))
        self.sweep()

    def sweep(self) -> None:
        """Let go of texts that are over and take waiting ones into their places, in order, while there is room."""
        for text in (*self._running, *self._waiting):
            if text.over and text.kept is not None and self._decoder is not None:
                self._decoder.release(text.kept)
                text.kept = None
        if any(text.over for text in (*self._running, *self._waiting)):
            self._running = deque(text for text in self._running if not text.over)
            self._waiting = deque(text for text in self._waiting if not text.over)
        taken = sum(text.cache_bytes for text in self._running)
        while self._waiting and len(self._running) < self._limits.running:
            taken += self._waiting[0].cache_bytes
            if self._running and taken > self._cache_bytes:
                break
            self._running.append(self._waiting.popleft())

    def step(self) -> None:
        """Make a token of every text that is to make one. `DeviceLostError` if the device does nothing any more."""
        for text in (*self._running, *self._waiting):
            if text.due:
                text.end_due()
        self._begin()
        turns = self._choose()
        if turns:
            self._run(turns)
        self.sweep()

    def _begin(self) -> None:
        assert self._decoder is not None
        decoder = self._decoder
        for text in self._running:
            if text.over or text.begun:
                continue
            try:
                text.begin(lambda alone: decoder.open(alone=alone))
            except Exception as error:  # an SAE that is gone, edits that do not fit
                ended = _ended(error)
            else:
                continue
            # Outside of the block above: the traceback and the tensors in its frames are gone.
            text.end_with(ended)

    def _choose(self) -> list[_Turn]:
        """Whose turn it is."""
        assert self._decoder is not None
        texts = [text for text in self._running if not text.over]
        alone = [text for text in texts if text.alone or not self._decoder.together]
        together = [text for text in texts if not text.alone and self._decoder.together]
        if alone and (self._alone_next or not together):
            self._alone_next = False
            # To the back of the row, for the others that are to be alone.
            self._running.remove(alone[0])
            self._running.append(alone[0])
            return [self._turn(alone[0], self._limits.prompt_tokens)]
        self._alone_next = True
        turns = []
        room = self._limits.prompt_tokens
        for text in together:
            if not text.in_prompt:
                turns.append(self._turn(text, 1))
            elif room > 0:
                turn = self._turn(text, room)
                if text.whole_prompt and len(turn.piece.ids) > room < self._limits.prompt_tokens:
                    continue  # it cannot be cut: first in the next step
                room -= len(turn.piece.ids)
                turns.append(turn)
        return turns

    def _turn(self, text: RunningText, most: int) -> _Turn:
        assert text.kept is not None
        return _Turn(text, Piece(text.kept, text.feed(most), not text.in_prompt))

    def _run(self, turns: Sequence[_Turn]) -> None:
        try:
            logits = self._forward(turns)
        except Exception as error:  # whatever a model raises ends texts, not the thread
            ended = _ended(error)
        else:
            self._settle(turns, logits)
            return
        # Outside of the block above: the traceback and the tensors in its frames are gone.
        if len(turns) == 1:
            turns[0].text.end_with(ended)
            return
        for turn in turns:
            self._run([turn])

    def _forward(self, turns: Sequence[_Turn]) -> Tensor:
        """[turns, vocabulary]"""
        assert self._decoder is not None
        arranged = self._decoder.arrange([turn.piece for turn in turns])
        places = []
        for (text, piece), (row, _) in zip(turns, arranged.spans, strict=True):
            if text.applied is not None:
                places.append(Place(text.applied, text.at, text.at + len(piece.ids), row))
        if not places:
            return self._decoder.logits(arranged)
        with beside(places, arranged.rows, self._joins):
            return self._decoder.logits(arranged)

    def _settle(self, turns: Sequence[_Turn], logits: Tensor) -> None:
        """Count what was run, choose the next tokens, deliver them."""
        assert self._decoder is not None
        self._decoder.keep([piece for _, piece in turns])
        choosing = []
        for at, (text, piece) in enumerate(turns):
            try:
                if text.ran(len(piece.ids), len(turns)):
                    choosing.append((at, text))
            except HookFault as fault:
                text.end_with(_ended(fault))
        tokens = choose_all(logits, [(at, text.request, text.made) for at, text in choosing])
        for (at, text), token in zip(choosing, tokens, strict=True):
            try:
                if token is None:
                    raise ValueError("the logits are not finite")
                text.take(token, logits[at])
            except Exception as error:  # a tokenizer may raise what it likes; it ends this text
                ended = _ended(error)
            else:
                continue
            text.end_with(ended)


def _ended(error: Exception) -> Exception:
    """`error` as `RunningText.end_with` takes it, without its traceback. Raises `DeviceLostError` where it is one."""
    match error:
        case InterventionGone():
            return InterventionGone()
        case HookFault():
            if isinstance(error.error, DeviceLostError):
                raise DeviceLostError(error.error.detail)
            return HookFault(error.attach_position, error.error)
    failure = explained(error, "making the text")
    if isinstance(failure, DeviceLostError):
        raise failure
    return failure
