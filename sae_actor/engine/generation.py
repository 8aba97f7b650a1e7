"""One text on the device thread: a sequence of steps, each a forward pass with the request's own hooks."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from ..domain.events import Receipt
from ..domain.refs import FinishReason
from ..errors import DeviceLostError, InternalError, NotReadyError, SAEError
from ..ports import Activations, Finished, ScoredToken, TextRequest, Token
from .failures import explained
from .hooks import Applied, HookFault, Tally
from .model import LoadedModel
from .positions import merged
from .sampling import choose
from .scoring import scored
from .text import StopStrings, TextDecoder

Scores = tuple[ScoredToken | None, tuple[ScoredToken, ...]]
Item = Token | Finished | SAEError
"""What a text delivers: tokens, then one of the others."""


class InterventionGone(Exception):  # noqa: N818 — no error: it was detached
    """An SAE of the request's intervention is not on the device any more."""


class RunningText:
    """One admitted request from its first step to its end."""

    def __init__(
        self,
        request: TextRequest,
        model: LoadedModel,
        apply: Callable[[TextRequest], Applied | None],
        deliver: Callable[[Item], None],
    ) -> None:
        """`apply` makes the intervention ready (None: nothing to do) or raises `InterventionGone`; it is called on
        the device thread with the first step. `deliver` is called there too."""
        self.request = request
        self.uses = frozenset(sae.attach_position for sae in request.saes)
        self.cancelled = False
        """Set from any thread: nobody reads any more."""
        self.over = False
        self._model: LoadedModel | None = model
        self._apply = apply
        self._deliver = deliver
        self._deadline = time.monotonic() + request.deadline_seconds
        most = request.sampling.max_tokens if request.forced is None else len(request.forced)
        self._most = min(most, model.facts.context_length - len(request.token_ids) + 1)
        self._ids: list[int] = []
        self._text = ""
        self._complete = 0
        """Characters that are readable so far, with those that a stop string holds back."""
        self._scores: Scores = (None, ())
        self._told: tuple[Activations, ...] = ()
        """Both of the newest step."""
        self._decoder = TextDecoder(model.decode, request.token_ids)
        self._stop = StopStrings(request.sampling.stop)
        self._cache: Any = None
        self._applied: Applied | None = None
        self._tally = Tally()

    @property
    def due(self) -> bool:
        """To be ended even if it gets no further step: given up by its reader, or past its deadline."""
        return self.cancelled or time.monotonic() > self._deadline

    def step(self) -> None:
        """Make one token. Never raises but `DeviceLostError`, after which the device does nothing any more."""
        if self.due:
            self.end_due()
            return
        failure: SAEError
        faulted: int | None = None
        try:
            self._advance()
            return
        except InterventionGone:
            self.finish("intervention_removed")
            return
        except HookFault as fault:
            failure, faulted = fault.error, fault.attach_position
        except Exception as error:  # whatever a model raises ends this text, not the thread
            failure = explained(error, "making the text")
        # Outside of the block above: the traceback and the tensors in its frames are gone.
        if isinstance(failure, DeviceLostError):
            raise failure
        self.finish("error", failure, faulted)

    def end_due(self) -> None:
        """End a text that is `due`."""
        if self.cancelled:
            self.finish("cancelled")
        else:
            seconds = self.request.deadline_seconds
            self.finish("error", NotReadyError(f"the text was not done within {seconds:g} seconds"))

    def finish(self, reason: FinishReason, error: SAEError | None = None, faulted: int | None = None) -> None:
        """End the text, once: deliver `Finished`, let go of the cache and the intervention."""
        if self.over:
            return
        tally = self._tally
        finished = Finished(
            reason=reason,
            receipt=Receipt(
                tokens_prompt=len(self.request.token_ids),
                tokens_generated=len(self._ids),
                tokens_edited=len(tally.edited),
                tokens_excluded=len(tally.excluded - tally.edited),
                mean_relative_norm=tally.mean_relative_norm,
            ),
            token_ids=tuple(self._ids),
            text=self._text,
            edited=merged(tally.edited),
            excluded=merged(tally.excluded - tally.edited),
            error_code=None if error is None else error.code,
            error_detail=None if error is None else error.detail,
            faulted=faulted,
        )
        self._let_go()
        self._deliver(finished)

    def fail(self, error: SAEError) -> None:
        """End the text with an error that is raised to its reader: the device is lost."""
        if not self.over:
            self._let_go()
            self._deliver(error)

    def _let_go(self) -> None:
        self.over = True
        self._cache = self._applied = self._model = None

    def _advance(self) -> None:
        model = self._model
        if model is None:
            raise InternalError("the text is over")
        if self._cache is None:
            self._applied = self._apply(self.request)
            if self._applied is not None:
                self._tally = self._applied.tally
            self._cache = model.new_cache()
        feed = (self._ids[-1],) if self._ids else self.request.token_ids
        first = len(self.request.token_ids) + len(self._ids) - 1 if self._ids else 0
        stops = False
        with nullcontext() if self._applied is None else self._applied.step(first, first + len(feed)):
            logits = model.next_logits(feed, self._cache)
        if self._applied is not None:
            self._applied.settle()
            self._told = self._applied.told()
            stops = self._stops()
        forced = self.request.forced
        token = choose(logits, self.request.sampling, len(self._ids)) if forced is None else forced[len(self._ids)]
        self._ids.append(token)
        if self._applied is not None:
            self._applied.add(token)
        if self.request.logprobs is not None:
            self._scores = scored(logits, token, self.request.logprobs, model.pieces)
        if token in model.end_ids:
            self._show(token, self._decoder.flush(), "stop")
        elif stops or len(self._ids) >= self._most:
            reason: FinishReason = "feature" if stops else "length"
            self._show(token, self._decoder.push(token) + self._decoder.flush(), reason)
        else:
            self._show(token, self._decoder.push(token), None)

    def _stops(self) -> bool:
        """Whether the step's token is one at which `stop_when` holds; what was read for that is not told."""
        stop = self.request.stop_when
        if stop is None:
            return False
        *told, read = self._told
        self._told = tuple(told)
        # In the prompt it does not hold: nothing could be made of a prompt that is about the feature.
        return bool(self._ids) and read.rows[-1][0].activation > stop.above

    def _show(self, token: int, piece: str, reason: FinishReason | None) -> None:
        """Deliver a token with the text that may be shown; what was held back comes with the last one."""
        text, stopped = self._stop.push(piece)
        if reason is not None and not stopped:
            text += self._stop.flush()
        self._text += text
        own, top = self._scores
        self._deliver(Token(id=token, text=text, offset=self._complete, scored=own, top=top, activations=self._told))
        self._complete += len(piece)
        if stopped or reason is not None:
            self.finish("stop" if stopped or reason is None else reason)
