"""The scheduler: the running generations, and one step of them, in one forward pass if the model allows it.

Every generation in decode is in every step. Prompts are prefilled in chunks, shared out by `turns`, so that a long
one does not hold up the others. A generation that must run alone takes its own steps in between, and so does every
generation of a model without batching. A failed step is tried again for each of its generations, so that only the one
at fault ends. Texts of runs are in no step of others, and give way. Nothing but `DeviceLostError` leaves a step.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

from torch import Tensor

from ...domain.refs import FinishReason
from ...errors import DeviceLostError, InternalError, ModelNotLoadedError, SAEError
from ..failures import explained
from ..interventions.hook_site import HookFault, MergedEdits
from ..interventions.hooks import StepRows, hooks_installed
from .attention import ScheduledTokens
from .generation import Generation, InterventionGone
from .grammars import Masks
from .model_runner import ModelRunner
from .queue.waiting import WaitingTexts
from .sampler import Asked, choose_all, processed_logits
from .turns import Prompt, PromptShares, Turns

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class SchedulerLimits:
    """How much may run at once."""

    running: int
    prompt_tokens: int
    """Prompt tokens in one step, if prompts may be cut."""


class _Turn(NamedTuple):
    """What a generation runs in a step."""

    text: Generation
    piece: ScheduledTokens
    rides: bool = False
    """The piece is another's: it runs these tokens for both."""


class Scheduler:
    """Belongs to the device thread."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        self._running: deque[Generation] = deque()
        self.waiting = WaitingTexts()
        self._joins = MergedEdits()
        self._masks = Masks()
        self._runner: ModelRunner | None = None
        self._cache_bytes = 0
        self._turns = Turns()
        self._shares = PromptShares()

    def use(self, runner: ModelRunner | None, cache_bytes: int = 0) -> None:
        """Another model, or none; nothing is running. Generations may take `cache_bytes` together."""
        self._runner, self._cache_bytes = runner, cache_bytes
        if runner is not None:
            runner.bound(cache_bytes)

    @property
    def cache_used(self) -> int:
        """Bytes of keys and values that are taken now."""
        runner = self._runner
        return 0 if runner is None else runner.nbytes

    @property
    def idle(self) -> bool:
        return not self._running

    @property
    def _all(self) -> Sequence[Generation]:
        return (*self._running, *(self.waiting if self.waiting.size else ()))

    def admit(self, texts: Sequence[Generation]) -> None:
        """Queue what runs side by side behind its share. It ends if its model was unloaded since its request."""
        if self._runner is None:
            for text in texts:
                text.finish("error", ModelNotLoadedError("the model was unloaded before the generation began"))
            return
        for text in texts:
            self.waiting.add(text)
        self.sweep()

    def end(self, which: Callable[[Generation], bool], reason: FinishReason, error: SAEError | None = None) -> None:
        """End all generations that `which` holds for."""
        for text in self._all:
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

    def give_up(self, error: SAEError) -> None:
        """A step failed through no generation's fault: all running ones end."""
        running = frozenset(self._running)
        self.end(lambda text: text in running, "error", error)

    def fail(self, error: DeviceLostError) -> None:
        """The device is lost. It is not used any more, not even to free memory."""
        texts = self._all
        self._running.clear()
        self.waiting.clear()
        for text in texts:
            text.kept = None
            text.fail(DeviceLostError(error.detail))

    def sweep(self) -> None:
        """Release ended generations and admit waiting ones, in their turn, while there is room."""
        over = [text for text in self._all if text.over]
        for text in over:
            self._release(text)
        if over:
            self._running = deque(text for text in self._running if not text.over)
            self.waiting.keep(lambda text: not text.over)
        while self.waiting.size and (party := self.waiting.next(self._running, self._fits)):
            self._make_room(party)
            self._running.extend(party)

    def _fits(self, party: Sequence[Generation], others: Collection[Generation]) -> bool:
        full = len(others) + len(party) > self._limits.running
        return not others or not (full or self._needed((*others, *party)) > self._cache_bytes)

    def _make_room(self, party: Sequence[Generation]) -> None:
        """End texts of runs, the newest first, whose keys and values take what these need."""
        giving = [text for text in self._running if text.request.background]
        while giving and self._needed((*self._running, *party)) > self._cache_bytes:
            self._running.remove(text := giving.pop())
            text.finish("cancelled")
            self._release(text)

    def _needed(self, texts: Sequence[Generation]) -> int:
        """KV cache bytes of several generations at their greatest length."""
        sizes = [text.cache_bytes for text in texts]
        # A generation that moves to another tensor is in both meanwhile.
        moving = max(sizes) if self._runner is not None and self._runner.together else 0
        return sum(sizes) + moving

    def _release(self, text: Generation) -> None:
        kept, text.kept = text.kept, None
        if kept is None or self._runner is None:
            return
        try:
            self._runner.release(kept)
        except Exception as error:  # the generation has ended: an error in freeing its cache concerns no other
            logger.error("the KV cache of a generation could not be freed: %s", _ended(error))

    def step(self) -> None:
        """Make a token for every generation that is due one. Raises `DeviceLostError`."""
        runner = self._runner
        if runner is None:
            self.end(lambda _: True, "error", ModelNotLoadedError("the model was unloaded"))
            return
        for text in self._all:
            if text.due:
                text.end_due()
        for text in self._running:
            if not (text.over or text.begun):
                _attempt(text, partial(text.begin, runner.open))
        turns = self._choose(runner)
        if turns:
            self._run(runner, turns)
        self.sweep()

    def _choose(self, runner: ModelRunner) -> list[_Turn]:
        """The generations of the next step."""

        def apart(text: Generation) -> bool:
            return text.alone or not runner.together

        texts = [text for text in self._running if not text.over]
        texts = [text for text in texts if not text.request.background] or texts
        alone = [text for text in texts if apart(text) and (not text.in_prefill or text in text.beside.due(apart))]
        others = not all(map(apart, texts))
        if alone and (text := self._turns.alone(alone, others=others, owed=self._shares.owes)) is not None:
            # To the back of the row, for the others that are to be alone.
            self._running.remove(text)
            self._running.append(text)
            return [_turn(text, text.beside.chunk(self._limits.prompt_tokens, 1) if text.in_prefill else 1)]
        sharing = [text for text in texts if not apart(text)]
        return self._share(sharing, lambda text: not apart(text), forks=runner.fork is not None)

    def _share(self, texts: Sequence[Generation], fits: Callable[[Generation], bool], *, forks: bool) -> list[_Turn]:
        """The generations of a shared step, of these; `fits` says which may be in it."""
        most = self._limits.prompt_tokens
        turns = [_turn(text, 1) for text in texts if not text.in_prefill]
        prompts = [_prompt(each, most) for each in texts if _has_share(each)]
        shares = self._shares.share(prompts, most) if prompts else {}
        turns += [_turn(text, shares[text]) for text in texts if text in shares]
        room = most - sum(shares.values())
        for beside in dict.fromkeys(text.beside for text in texts if text.request.scoring is not None):
            party = beside.due(fits, forks=forks) if room > 0 else []
            if not party:
                continue
            size, whole = (beside.chunk(limit, len(party), forks=forks) for limit in (room, most))
            if room < most and (len(party) * size > room or size < whole):
                continue  # it cannot, or need not, be cut so short: first in the next step
            party = party[: max(1, room // size)]
            room -= len(party) * size
            for text in party:
                turns.append(turn := _turn(text, size))
                turns += [_Turn(each, turn.piece, rides=True) for each in beside.riders(text, forks=forks)]
        return turns

    def _run(self, runner: ModelRunner, turns: Sequence[_Turn]) -> None:
        try:
            logits, prompts = self._forward(runner, turns)
        except Exception as error:  # an error of a model ends generations, not the thread
            ended = _ended(error)
        else:
            _settle(turns, logits, prompts, self._masks)
            return
        # Outside of the block above: the traceback and the tensors in its frames are gone.
        parts: dict[int, list[_Turn]] = {}
        for turn in turns:
            parts.setdefault(id(turn.piece), []).append(turn)
        for part in parts.values():
            if len(parts) > 1:
                self._run(runner, part)
                continue
            for turn in part:
                turn.text.end_with(ended)

    def _forward(self, runner: ModelRunner, turns: Sequence[_Turn]) -> tuple[Tensor, list[Tensor | None]]:
        """[turns, vocabulary]; and, where a prompt is scored, [tokens of the piece, vocabulary]."""
        pieces = [turn.piece for turn in turns if not turn.rides]
        arranged = runner.arrange(pieces)
        number = {id(piece): at for at, piece in enumerate(pieces)}
        rows = [number[id(turn.piece)] for turn in turns]
        places = []
        for (text, piece, _), at in zip(turns, rows, strict=True):
            if text.applied is not None:
                places.append(StepRows(text.applied, text.at, text.at + len(piece.ids), arranged.spans[at][0]))
        if places:
            with hooks_installed(places, arranged.rows, self._joins):
                logits = runner.logits(arranged)
        else:
            logits = runner.logits(arranged)
        runner.keep(arranged)
        for text, piece, rides in turns:
            whole = piece.kept.length == len(text.request.token_ids)
            if rides and whole and runner.fork is not None and text.kept is not None:
                runner.fork(piece.kept, text.kept)
        ranges = [arranged.logits[at] for at in rows]
        prompts = [
            logits[start:stop] if turn.piece.scored else None for turn, (start, stop) in zip(turns, ranges, strict=True)
        ]
        if any(piece.scored for piece in pieces):
            logits = logits[[stop - 1 for _, stop in ranges]]
        return logits, prompts


def _has_share(text: Generation) -> bool:
    """Of the prompt tokens of a step; texts to score get what is left."""
    return text.in_prefill and text.request.scoring is None


def _prompt(text: Generation, most: int) -> Prompt:
    return Prompt(text, len(text.given) - text.at, text.beside.chunk(1, 1), text.beside.chunk(most, 1))


def _turn(text: Generation, most: int) -> _Turn:
    if text.kept is None:
        raise InternalError("the generation has not begun")
    return _Turn(text, ScheduledTokens(text.kept, text.next_tokens(most), not text.in_prefill, text.is_scored))


def _settle(turns: Sequence[_Turn], logits: Tensor, prompts: Sequence[Tensor | None], masks: Masks) -> None:
    """Count what was run, choose the next tokens, deliver them. `logits`, `prompts` as `_forward` returns them."""
    choosing = []
    for at, ((text, piece, _), rows) in enumerate(zip(turns, prompts, strict=True)):
        if rows is not None:
            _attempt(text, partial(text.score_prompt, rows))
        if not text.over and _attempt(text, partial(text.ran, len(piece.ids), len(turns))):
            choosing.append((at, text))
    try:
        tokens = choose_all(logits, [_asked(at, text) for at, text in choosing], masks)
    except Exception as error:  # a grammar past its limits; the first to wait for the device: it may be full, or lost
        _ended(error)
        tokens = []
        for at, text in choosing:
            alone = _attempt(text, partial(choose_all, logits[at][None], [_asked(0, text)], masks))
            tokens.append(None if alone is None else alone[0])
    for (at, text), token in zip(choosing, tokens, strict=True):
        if not text.over:
            _attempt(text, partial(_append, text, token, logits[at], masks))


def _asked(row: int, text: Generation) -> Asked:
    return Asked(row, text.request, text.made, text.banned, text.penalties, text.binding)


def _append(text: Generation, token: int | None, logits: Tensor, masks: Masks) -> None:
    if token is None:
        raise InternalError("the model's logits are not finite")
    if text.request.processed_scores:
        rows, processed = processed_logits(logits[None], [_asked(0, text)], masks)
        logits = processed[0] if rows else logits
    text.append(token, logits)


def _attempt(text: Generation, act: Callable[[], T]) -> T | None:
    """The result of `act`. If it raises, the generation ends with that error: a missing SAE, edits that do not fit, any
    error of a tokenizer. Raises `DeviceLostError`."""
    try:
        return act()
    except Exception as error:  # it ends this generation, not the thread
        ended = _ended(error)
    # Outside of the block above: the traceback and the tensors in its frames are gone.
    text.end_with(ended)
    return None


def _ended(error: Exception) -> Exception:
    """`error` as `Generation.end_with` takes it, without its traceback. Raises `DeviceLostError` if it is one."""
    match error:
        case InterventionGone():
            return InterventionGone()
        case HookFault():
            if isinstance(error.error, DeviceLostError):
                raise DeviceLostError(error.error.detail)
            return HookFault(error.attach_position, error.error)
    failure = explained(error, "generating")
    if isinstance(failure, DeviceLostError):
        raise failure
    return failure
