"""One generation: prefill, decode, delivery, and its receipt."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from ...domain.events import Receipt
from ...domain.refs import FinishReason
from ...errors import InternalError, NotReadyError, SAEError
from ...ports import (
    Activations,
    Finished,
    GenerationRequest,
    GenerationStream,
    Rest,
    ScoredToken,
    Token,
)
from ..failures import explained
from ..interventions.hook_site import HookFault, Tally
from ..interventions.hooks import PreparedIntervention
from ..interventions.positions import merged
from ..interventions.probes import Probe
from ..tokens.answers import Answer
from ..tokens.tokenizer import Tokenizer
from .bounds import ending_ids, positions_at_most, tokens_at_most
from .grammars import GrammarState, beginning
from .kv_cache import CacheSize, KVCache
from .logprobs import scored
from .penalties import Penalties
from .scores import TextScores
from .side_by_side import SideBySide, spares_prompt

Scored = tuple[ScoredToken | None, tuple[ScoredToken, ...], tuple[ScoredToken, ...]]
Item = Token | Finished | SAEError | None
"""What a generation delivers: None with its first step, tokens, then one of the others."""


class Opens(Protocol):
    """Opens a generation's KV cache (`ModelRunner.open`)."""

    def __call__(self, *, alone: bool) -> KVCache: ...


class InterventionGone(Exception):  # noqa: N818 — no error: it was detached
    """An SAE of the request's intervention is not on the device any more."""


class Generation:
    """One admitted request from its first step to its end. Belongs to the device thread."""

    def __init__(
        self,
        request: GenerationRequest,
        tokenizer: Tokenizer,
        cache_size: CacheSize,
        apply: Callable[[GenerationRequest], PreparedIntervention | None],
        *,
        streams: Sequence[GenerationStream],
        made: deque[tuple[GenerationStream, Item]],
        uses: frozenset[int] = frozenset(),
        beside: SideBySide[Generation] | None = None,
    ) -> None:
        """`apply` makes the intervention ready (None: nothing to do) or raises `InterventionGone`; it is called on the
        device thread with the first step. `made` gets what is to be appended to the streams. uses: more SAEs than the
        request's. beside: of a text to score, those that run with it."""
        self.request = request
        self.streams = tuple(streams)
        self.uses = uses.union(sae.attach_position for sae in request.saes)
        """attach_position of every SAE without which it ends."""
        self.given = request.given
        self.spares_prompt = spares_prompt(request)
        self.beside: SideBySide[Generation] = beside or SideBySide(compared=False)
        self.beside.members.append(self)
        self.over = False
        self.kept: KVCache | None = None
        self.applied: PreparedIntervention | None = None
        self.penalties = Penalties.of(request)
        self._grammar: GrammarState | None = None
        """Once it has begun."""
        self.alone = request.alone or request.deterministic
        """It runs alone in its steps."""
        self._fed = 0
        """Tokens that were run."""
        self._tokenizer: Tokenizer | None = tokenizer
        self._apply: Callable[[GenerationRequest], PreparedIntervention | None] | None = apply
        self._made = made
        # Many texts may be scored at a request: they wait for one another.
        self._deadline = math.inf if request.scoring is not None else time.monotonic() + request.deadline_seconds
        self._most = tokens_at_most(request, tokenizer.context_length)
        self.cache_bytes = cache_size.of(positions_at_most(request, tokenizer.context_length))
        """Of keys and values, once it is as long as it may become."""
        self._ids: list[int] = []
        self._text = ""
        self._scored: Scored = (None, (), ())
        self._scores = None if request.prompt_logprobs is None else TextScores(request)
        self._readings: dict[Probe, Activations] = {}
        """Both of the newest step; readings of prefill chunks are joined until the first token."""
        self._answer: Answer | None = Answer(tokenizer, request.token_ids, request.sampling, request.reasoning)
        self._thoughts = 0
        own = () if request.sampling.ignore_eos else tokenizer.end_ids
        self._ends = frozenset((*own, *request.sampling.stop_token_ids))
        """Tokens that end it."""
        self._held_off = tuple(ending_ids(request, tokenizer))
        self._ahead = tuple(tokenizer.end_ids)
        """Tokens that may not come before what has a form."""
        self._tally = Tally()
        self._batch: tuple[int, int] | None = None

    @property
    def due(self) -> bool:
        """To be ended even if it gets no further step: given up by its readers, or past its deadline."""
        return self.beside.given_up(self) or time.monotonic() > self._deadline

    @property
    def begun(self) -> bool:
        return self.kept is not None

    @property
    def made(self) -> int:
        """Tokens of the answer so far."""
        return len(self._ids)

    @property
    def banned(self) -> Sequence[int]:
        """Tokens that may not be the next one."""
        grammar, forced = self._grammar, self.request.forced is not None
        if grammar is not None and grammar.waits:
            # The reasoning has to end, for the form to come.
            return self._ahead if not forced or self.request.processed_scores else ()
        early = len(self._ids) < self.request.sampling.min_tokens and not forced
        # Where the grammar leaves an end alone, the text ends early.
        return self._held_off if early and not (grammar is not None and grammar.over) else ()

    @property
    def binding(self) -> GrammarState | None:
        """The grammar that the next token has to follow."""
        return self._grammar if self._grammar is not None and self._grammar.binds else None

    @property
    def at(self) -> int:
        """Position of the next token that is run."""
        return self._fed

    @property
    def in_prefill(self) -> bool:
        return self._fed < len(self.given)

    @property
    def is_scored(self) -> bool:
        """The logits after each token of the next step are wanted."""
        return self.in_prefill and self.request.prompt_logprobs is not None

    @property
    def at_once(self) -> int:
        """Fewest prompt tokens in the next chunk: for the norms that identify sinks, or all of them to keep sums
        equal."""
        if self.alone:
            return len(self.given)
        return self.applied.first_piece if self.applied is not None and self._fed == 0 else 1

    @property
    def most_rows(self) -> int:
        return len(self.given) if self.applied is None else self.applied.most_rows

    def begin(self, open_: Opens) -> None:
        """The first step is next. Raises `InterventionGone`, `SAEError`."""
        if self._apply is None:
            raise InternalError("the generation has ended")
        self._deadline = time.monotonic() + self.request.deadline_seconds
        self._deliver(None)
        self.applied = self._apply(self.request)
        if self.applied is not None:
            self._tally = self.applied.tally
        self._grammar = beginning(self.request.grammar, self._ahead)
        if self._grammar is not None and self._answer is not None:
            self._grammar.waits = self._answer.thinking
        self.kept = open_(alone=self.alone)

    def next_tokens(self, most: int) -> Sequence[int]:
        """The ids of the next step: `most` of what is given, as long as there are any; later the newest token."""
        return self.given[self._fed : self._fed + most] if self.in_prefill else self._ids[-1:]

    def score_prompt(self, logits: Tensor) -> None:
        """A step runs the prompt's next tokens. `logits` [tokens, vocabulary], after each of them."""
        if self._tokenizer is None or self._scores is None:
            raise InternalError("the generation has ended")
        refer, against = self.beside.refers(self), self.beside.reference(self)
        found = self._scores.take(self._fed, logits, self._tokenizer.pieces, against=against, refer=refer)
        self.beside.keep(found)

    def ran(self, count: int, texts: int) -> bool:
        """A step ran `count` of its tokens. Returns whether to choose a next one. Raises `HookFault`."""
        fewest, most = self._batch or (texts, texts)
        self._batch = (min(fewest, texts), max(most, texts))
        if self.applied is not None:
            self.applied.settle(self._fed)
            self.applied.read_into(self._readings)
        self._fed += count
        if not self.in_prefill and self._most == 0:
            self._ids += () if self.request.scoring is None else self.request.scoring.continuation
            self.finish("length")
        return not (self.in_prefill or self.over)

    def append(self, token: int, logits: Tensor) -> None:
        """The next token is chosen, from `logits` [vocabulary]."""
        tokenizer, answer = self._tokenizer, self._answer
        if tokenizer is None or answer is None:
            raise InternalError("the generation has ended")
        stops, grammar = self._stops(), self._grammar
        complete = grammar is not None and grammar.over
        self._ids.append(token)
        if self.penalties is not None:
            self.penalties.add(token)
        if grammar is not None:
            grammar.add(token)
        if self.applied is not None:
            self.applied.add(token)
        most, named = self.request.logprobs, self.request.logprobs_of
        if most is not None or named:
            self._scored = scored(logits, token, most or 0, tokenizer.pieces, named)
        reason: FinishReason | None = None
        if ends := token in self._ends and (complete or len(self._ids) > self.request.sampling.min_tokens):
            reason = "stop"
        elif grammar is not None and grammar.over and not tokenizer.end_ids:
            reason = "stop"  # the model has no token to say so
        elif stops or len(self._ids) >= self._most:
            reason = "feature" if stops else "length"
        self._show(token, answer, reason, ends=ends)
        self._readings = {}
        if grammar is not None:
            grammar.waits = answer.thinking

    def _stops(self) -> bool:
        """Whether `stop_when` holds at the step's token; its reading is not delivered."""
        stop = self.request.stop_when
        if stop is None:
            return False
        assert self.applied is not None
        assert self.applied.stop is not None
        read = self._readings.pop(self.applied.stop)
        # In the prompt it does not hold: nothing could be made of a prompt that is about the feature.
        return bool(self._ids) and not read.excluded[-1] and read.rows[-1][0].activation > stop.above

    def _show(self, token: int, answer: Answer, reason: FinishReason | None, *, ends: bool) -> None:
        """Deliver a token with the text that may be shown. ends: the token ends the generation."""
        part = answer.push(token, ends=ends, last=reason is not None)
        self._text += part.text
        self._thoughts = answer.reasoning_tokens
        own, top, named = self._scored
        self._deliver(
            Token(
                id=token,
                text=part.text,
                offset=part.offset,
                reasoning=part.reasoning,
                content=part.content,
                scored=own,
                top=top,
                named=named,
                activations=tuple(self._readings.values()),
                details=() if self.applied is None else self.applied.taken_details(),
                prompt=() if self._scores is None or len(self._ids) > 1 else tuple(self._scores.tokens),
            )
        )
        if part.stopped or reason is not None:
            self.finish("stop" if part.stopped or reason is None else reason)

    def _deliver(self, item: Item) -> None:
        self._made.extend((stream, item) for stream in self.streams)

    # — the end —

    def end_due(self) -> None:
        """End a generation that is `due`."""
        if self.beside.given_up(self):
            self.finish("cancelled")
        else:
            what, seconds = "finish" if self.begun else "begin", self.request.deadline_seconds
            self.finish("error", NotReadyError(f"the generation did not {what} within {seconds:g} seconds"))

    def end_with(self, error: Exception) -> None:
        """End the generation with the error of its step."""
        match error:
            case InterventionGone():
                self.finish("intervention_removed")
            case HookFault():
                self.finish("error", error.error, error.attach_position)
            case _:
                self.finish("error", explained(error, "generating"))

    def finish(self, reason: FinishReason, error: SAEError | None = None, faulted: int | None = None) -> None:
        """End the generation, once: deliver `Finished`, release the intervention."""
        if self.over:
            return
        tally, rest = self._tally, Rest() if self._answer is None else self._answer.rest()
        scores = None if self.in_prefill else self._scores
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
            text=self._text + rest.text,
            rest=rest,
            reasoning_tokens=self._thoughts,
            prompt=() if scores is None else tuple(scores.tokens),
            scores=None if scores is None or self.request.scoring is None else scores.result(),
            activations=self._read_of_prompt(),
            details=() if self.applied is None else self.applied.taken_details(),
            edited=merged(tally.edited),
            excluded=merged(tally.excluded - tally.edited),
            edited_sinks=merged(tally.edited_sinks),
            error_code=None if error is None else error.code,
            error_detail=None if error is None else error.detail,
            faulted=faulted,
            batch=self._batch,
        )
        self._let_go()
        self._deliver(finished)

    def _read_of_prompt(self) -> tuple[Activations, ...]:
        """What no token brings, if none is to be made."""
        if self._most > 0 or self.in_prefill or self.applied is None:
            return ()
        return tuple(read for probe, read in self._readings.items() if probe is not self.applied.stop)

    def fail(self, error: SAEError) -> None:
        """End the generation with an error that is raised to its reader: the device is lost."""
        if not self.over:
            self._let_go()
            self._deliver(error)

    def _let_go(self) -> None:
        """Release the model: the reader may keep this object for long."""
        self.over = True
        self.applied = self._tokenizer = self._apply = self._answer = self._grammar = self.penalties = None
        self._scores = None
        self._readings = {}
        self.beside.leave()
