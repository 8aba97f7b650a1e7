"""A text of the fake engine: a function of prompt, intervention and seed.

Bytes are its tokens (ids 0 to 255), `END` is 256, special ones that a test gives it follow. What is shown of a text
with special tokens or thoughts is told by the service's own `Answer`, which needs torch to be imported: only then.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import UNSET
from msgspec.structs import replace

from sae_actor.domain.events import Receipt
from sae_actor.domain.refs import ActiveSae, Edit, FinishReason, When, intervention_sha256
from sae_actor.ports import (
    Activations,
    FeatureActivation,
    FeatureChange,
    Finished,
    GenerationRequest,
    GenerationStream,
    Pooled,
    PositionDetails,
    PromptToken,
    Rest,
    ScoredToken,
    Scores,
    TargetToken,
    Token,
    TokenScore,
    Watch,
)
from tests.fakes.choosing import Choosing, changes
from tests.fakes.coverage import covered, holding, left_out, ranges

if TYPE_CHECKING:
    from tests.fakes.engine import FakeEngine

END = 256
_LETTERS = b"abcdefghijklmnopqrstuvwxyz etaoin"


class RunningText(GenerationStream):
    """One running text."""

    def __init__(
        self,
        engine: FakeEngine,
        request: GenerationRequest,
        context_length: int,
        apart: int | None = None,
        beside: object = None,
    ) -> None:
        """apart: by how many edits it differs from the baseline that it is compared with. beside: the same for all that
        run side by side."""
        super().__init__(engine._streams.discard)
        self._apart = apart
        self.beside = beside
        self.request = request
        self.uses = frozenset(sae.attach_position for sae in request.saes)
        self.ids: list[int] = []
        self.task: asyncio.Task[None] | None = None
        self._engine = engine
        self._most = min(request.sampling.max_tokens, context_length - len(request.token_ids) + 1)
        if request.scoring is not None:
            self._most = 0
        self._text = ""
        self._shown = 0
        changing = tuple(sae for sae in request.intervention if sae.changes_text)
        seed = request.sampling.seed if request.sampling.temperature > 0 else None
        self._run_before = 0
        self._detailed = 0
        self._passing: dict[int, float] = {}
        """Of the watches at a limited rate, by place in `watched`: when it was told last."""
        self._d_sae = {position: effect.sae.d_sae for position, (effect, _) in engine.residents.items()}
        self._encode = {position for position, (effect, _) in engine.residents.items() if effect.sae.encodes}
        sampling = request.sampling
        self._ends = {*(() if sampling.ignore_eos else (END,)), *sampling.stop_token_ids}
        self._held_off = {END, *sampling.stop_token_ids}
        self._answer = self._told_apart()
        self._choosing: Choosing | None = None
        self._key = f"{request.token_ids}{intervention_sha256(changing)}{seed}".encode()

        if changes(request):
            self._choosing = Choosing(request, self._key, engine.vocabulary, END)

    def _told_apart(self) -> Any:
        """The service's own `Answer`, where the text is more than letters and stop strings."""
        sampling = self.request.sampling
        more = sampling.ignore_eos or not sampling.skip_special_tokens or sampling.include_stop_str_in_output
        early = sampling.min_tokens and sampling.stop
        if not (more or early or self._engine.specials or self._engine.script or self.request.reasoning):
            return None
        from sae_actor.engine.tokens.answers import Answer

        return Answer(self._engine.voice, self.request.token_ids, sampling, self.request.reasoning)

    def _next(self, index: int, ends_after: int | None) -> int:
        early = index < self.request.sampling.min_tokens
        script = self._engine.script
        token = _LETTERS[self._digest(index) % len(_LETTERS)]
        if script is not None:
            token = script[index] if index < len(script) else END
        elif ends_after is not None and index == max(ends_after, self.request.sampling.min_tokens):
            token = END
        if self._choosing is not None:
            return self._choosing.token(token, self.ids, self._held_off if early else ())
        if early and token in self._held_off:
            token = next(each for each in (self._digest(index) % 256 + n for n in range(257)) if self._allowed(each))
        return token

    def _allowed(self, token: int) -> bool:
        return token < 256 and token not in self._held_off

    def _digest(self, index: int) -> int:
        return hashlib.sha256(self._key + index.to_bytes(8, "little")).digest()[0]

    def step(self, ends_after: int | None) -> None:
        """Make one token; none if none is wanted."""
        if self._most == 0:
            self.finish("length")
            return
        complete = self._choosing is not None and self._choosing.over
        token = self._next(len(self.ids), ends_after)
        self.ids.append(token)
        ends = token in self._ends and (complete or len(self.ids) > self.request.sampling.min_tokens)
        if self._answer is not None:
            self._tell(token, ends=ends)
            return
        if ends:
            self._show(token, len(self._text))
            self.finish("stop")
            return
        self._text += chr(token)
        stop = self.request.sampling.stop
        found = [at for at in (self._text.find(each) for each in stop) if at >= 0]
        if found:
            self._text = self._text[: min(found)]
            self._show(self.ids[-1], len(self._text))
            self.finish("stop")
        elif self._stops():
            self._show(self.ids[-1], len(self._text))
            self.finish("feature")
        elif len(self.ids) >= self._most:
            self._show(self.ids[-1], len(self._text))
            self.finish("length")
        else:
            held = max((n for each in stop for n in range(len(each)) if self._text.endswith(each[:n])), default=0)
            self._show(self.ids[-1], len(self._text) - held)

    def _tell(self, token: int, *, ends: bool) -> None:
        reason: FinishReason | None = "stop" if ends else None
        if reason is None and (self._stops() or len(self.ids) >= self._most):
            reason = "feature" if self._stops() else "length"
        part = self._answer.push(token, ends=ends, last=reason is not None)
        self._text += part.text
        self._shown = len(self._text)
        own, top = self._scores(token)
        self.append(
            Token(
                named=self._named(token),
                id=token,
                text=part.text,
                offset=part.offset,
                reasoning=part.reasoning,
                content=part.content,
                scored=own,
                top=top,
                activations=self._activations(),
                details=self._details(len(self.request.token_ids) + len(self.ids) - 1),
                prompt=self._prompt() if len(self.ids) == 1 else (),
            )
        )
        if part.stopped or reason is not None:
            self.finish("stop" if part.stopped or reason is None else reason)

    def finish(self, reason: FinishReason, code: str | None = None, faulted: int | None = None) -> None:
        """End the text, once."""
        if self.finished.done():
            return
        run = len(self.request.token_ids) + len(self.ids) - 1 if self.ids else 0
        scores = None
        if self._most == 0 and reason == "length":
            run = len(self.request.given)
            if self.request.scoring is not None:
                scores, self.ids = self._of_given(), [*self.request.scoring.continuation]
        edited, excluded = covered(
            self.request.intervention,
            len(self.request.token_ids),
            run,
            met=self._met,
            special=self._special(),
            turns=self.request.turns,
        )
        told = self._activations() if self._most == 0 and reason == "length" else ()
        details = self._details(run) if reason == "length" else ()
        rest = Rest(self._text[self._shown :])
        if self._answer is not None:
            rest = self._answer.rest()
            self._text += rest.text
        self.append(
            Finished(
                reason=reason,
                receipt=Receipt(
                    tokens_prompt=len(self.request.token_ids),
                    tokens_generated=len(self.ids),
                    tokens_edited=len(edited),
                    tokens_excluded=len(excluded),
                    mean_relative_norm=0.25 if edited else 0.0,
                ),
                token_ids=tuple(self.ids),
                text=self._text,
                rest=rest,
                reasoning_tokens=0 if self._answer is None else self._answer.reasoning_tokens,
                prompt=self._prompt() if self.ids or (self._most == 0 and reason == "length") else (),
                scores=scores,
                activations=told,
                details=details,
                edited=ranges(edited),
                excluded=ranges(excluded),
                edited_sinks=ranges(edited & {0}),
                error_code=code,
                error_detail=None if code is None else "told to fail",
                faulted=faulted,
            )
        )

    def _stops(self) -> bool:
        """Whether `stop_when` holds at the token before the newest one, if that was generated."""
        asked, at = self.request.stop_when, len(self.request.token_ids) + len(self.ids) - 2
        if asked is None or len(self.ids) < 2:
            return False
        left = left_out(asked.exclude, len(self.request.token_ids), self._special(), self.request.turns)
        return at not in left and self._met(asked.sae, When(asked.feature, asked.above), at)

    def _special(self) -> set[int]:
        return {at for at, each in enumerate((*self.request.token_ids, *self.ids)) if each >= END}

    def _met(self, sae: ActiveSae, when: When, at: int) -> bool:
        token = (*self.request.token_ids, *self.ids)[at]
        watch = Watch(sae=sae, features=(when.feature,))
        return activations(token, watch, self._d_sae[sae.attach_position])[0].activation > when.above

    def _show(self, token: int, upto: int) -> None:
        upto = max(upto, self._shown)
        own, top = self._scores(token)
        self.append(
            Token(
                named=self._named(token),
                id=token,
                text=self._text[self._shown : upto],
                offset=len(self.ids) - 1,
                scored=own,
                top=top,
                activations=self._activations(),
                details=self._details(len(self.request.token_ids) + len(self.ids) - 1),
                prompt=self._prompt() if len(self.ids) == 1 else (),
            )
        )
        self._shown = upto

    def _activations(self) -> tuple[Activations, ...]:
        """Of the positions run since the token before; at a limited rate of the newest one alone."""
        run = self.request.given if self.request.scoring else (*self.request.token_ids, *self.ids[:-1])
        first, self._run_before = self._run_before, len(run)
        told = []
        for place, watch in enumerate(self.request.watched):
            if watch.every_seconds is not None and not self._due(place, watch):
                continue
            start = first if watch.every_seconds is None else len(run) - 1
            left = left_out(watch.exclude, len(self.request.token_ids), self._special(), self.request.turns)
            positions = range(start, len(run))
            if watch.of_place:
                told.append(self._of_place(watch, run, positions, left))
                continue
            d_sae = self._d_sae[watch.sae.attach_position]
            silent = left if watch.top_k is not None else set()
            told.append(
                Activations(
                    sae_id=watch.sae.sae_id,
                    first=start,
                    rows=()
                    if watch.pooling
                    else tuple(() if at in silent else activations(run[at], watch, d_sae) for at in positions),
                    sinks=tuple(at == 0 for at in positions),
                    excluded=tuple(at in left for at in positions),
                    pooled=watch.pooling and pooled([run[at] for at in positions if at not in left], watch, d_sae),
                )
            )
        return tuple(told)

    def _details(self, run: int) -> tuple[PositionDetails, ...]:
        """Of the positions before `run` that were not reported yet."""
        asked, first, self._detailed = self.request.details, self._detailed, run
        if asked is None:
            return ()
        watches = [watch for watch in asked if watch.sae.attach_position in self._encode]
        found = []
        for at in range(first, run):
            held = {sae: self._holding(sae, at) for sae in self.request.intervention}
            written, _ = covered(
                self.request.intervention,
                len(self.request.token_ids),
                at + 1,
                met=self._met,
                special=self._special(),
                turns=self.request.turns,
            )
            features = tuple(change for watch in watches for change in self._changes(watch, at, held))
            found.append(
                PositionDetails(
                    position=at,
                    edits=tuple((sae.sae_id, index) for sae, indices in held.items() for index in indices),
                    relative_norm=0.25 if at in written else 0.0,
                    features=features if watches else UNSET,
                )
            )
        return tuple(found)

    def _holding(self, sae: ActiveSae, at: int) -> tuple[int, ...]:
        return holding(
            sae, at, len(self.request.token_ids), met=self._met, special=self._special(), turns=self.request.turns
        )

    def _changes(self, watch: Watch, at: int, held: Mapping[ActiveSae, tuple[int, ...]]) -> list[FeatureChange]:
        """Every edit does to its feature's activation what it is told to; projections do nothing to any."""
        token = (*self.request.token_ids, *self.ids)[at]
        named = Watch(sae=watch.sae, features=watch.features)
        found = []
        for each in activations(token, named, self._d_sae[watch.sae.attach_position]):
            after = each.activation
            for sae, indices in held.items():
                for edit in (sae.steering[n] for n in indices if sae.sae_id == watch.sae.sae_id):
                    if edit.feature == each.feature:
                        after = _edited(after, edit)
            found.append(
                FeatureChange(sae_id=watch.sae.sae_id, feature=each.feature, before=each.activation, after=after)
            )
        return found

    def _of_place(self, watch: Watch, run: Sequence[int], positions: range, left: Collection[int]) -> Activations:
        """A token is its number at the place of its number, modulo the width, plus the layer everywhere. A lens sees
        the token itself, and after the last block the one that follows."""
        width, layer = self._engine.hidden_size, watch.sae.hook_point.layer
        rows = [[layer + (run[at] if run[at] % width == n else 0.0) for n in range(width)] for at in positions]
        told = Activations(
            sae_id="",
            first=positions.start,
            rows=(),
            sinks=tuple(at == 0 for at in positions),
            excluded=tuple(at in left for at in positions),
        )
        if watch.raw:
            return replace(told, raw=b"".join(array("f", row).tobytes() for row in rows))
        if watch.lens is not None:
            seen = (*run, self.ids[-1])[1:] if layer == self._engine.num_layers - 1 else run
            ranked = [self._ranked(seen[at])[: watch.lens] for at in positions]
            return replace(told, lens=tuple(tuple(TokenScore(s.id, s.text, s.logprob) for s in row) for row in ranked))
        counted = [row for at, row in zip(positions, rows, strict=True) if at not in left]
        mean = tuple(sum(column) / max(1, len(counted)) for column in zip(*counted, strict=True)) or (0.0,) * width
        return replace(told, mean=mean, norms=tuple(math.hypot(*row) for row in rows))

    def _due(self, place: int, watch: Watch) -> bool:
        now = self.finished.get_loop().time()
        if watch.sae.attach_position not in self._engine.residents:
            return False
        if now - self._passing.get(place, -math.inf) < (watch.every_seconds or 0.0):
            return False
        self._passing[place] = now
        return True

    def _of_given(self) -> Scores:
        """After the text the letters come, the first of them the most probable; half a nat for every edit apart."""
        assert self.request.scoring is not None
        most, next_ = self.request.prompt_logprobs, self._ranked(97)
        found = {each.id: (rank, each) for rank, each in enumerate(next_, 1)}
        targets = []
        for token in self.request.scoring.targets:
            rank, each = found.get(token, (len(found) + 1, self._ranked(token)[0]))
            logprob = -math.log(2) * rank
            targets.append(
                TargetToken(id=token, text=each.text, bytes=each.bytes, logprob=logprob, logit=-rank, rank=rank)
            )
        more = self.request.scoring.continuation
        counted = len(more) or len(self.request.token_ids) - 1
        kl = None if self._apart is None or not counted else 0.5 * self._apart
        top = tuple(next_[:most]) if not more or self.request.scoring.runs_last else ()
        return Scores(greedy=not edits_of(self.request), kl=kl, targets=tuple(targets), top=top)

    def _scores(self, token: int) -> tuple[ScoredToken | None, tuple[ScoredToken, ...]]:
        """The chosen token is the most probable one, the letters behind it follow; each half as probable."""
        most = self.request.logprobs
        if most is None:
            return None, ()
        own, *others = self._ranked(token)
        return own, (own, *others)[:most]

    def _named(self, token: int) -> tuple[ScoredToken, ...]:
        known = {each.id: each for each in self._ranked(token)}
        return tuple(
            known.get(each) or replace(self._ranked(each)[0], logprob=-9999.0) for each in self.request.logprobs_of
        )

    def _ranked(self, token: int) -> list[ScoredToken]:
        ids = [token, *(each for each in range(32, 127) if each != token)]
        texts = [self._engine.voice.written(each) for each in ids]
        return [
            ScoredToken(id=each, text=text, bytes=text.encode(), logprob=-math.log(2) * (rank + 1))
            for rank, (each, text) in enumerate(zip(ids, texts, strict=True))
        ]

    def _prompt(self) -> tuple[PromptToken, ...]:
        """Each token of it as if it had been chosen; a text to score, less probable with every edit."""
        most, ids = self.request.prompt_logprobs, self.request.token_ids
        if most is None:
            return ()
        less = 0
        if self.request.scoring is not None:
            ids, less = (*ids, *self.request.scoring.continuation), edits_of(self.request)
        told = []
        for each in ids:
            ranked = self._ranked(each)
            own = ranked[less]
            own = replace(own, id=each, text=ranked[0].text, bytes=ranked[0].bytes)
            top = (*(ranked[1 : less + 1]), own, *ranked[less + 1 :])[:most]
            if less:
                top = tuple(replace(n, logprob=-math.log(2) * (rank + 1)) for rank, n in enumerate(top))
            told.append(PromptToken(id=each, text=own.text, bytes=own.bytes, logprob=own.logprob, top=top))
        return (replace(told[0], logprob=None, top=()), *told[1:])

    def stop(self) -> None:
        self.finish("cancelled")

    async def aclose(self) -> None:
        """Free the slot."""
        await super().aclose()
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task


def _edited(activation: float, edit: Edit) -> float:
    match edit.method:
        case "add":
            return max(0.0, activation + edit.strength)
        case "set":
            return edit.strength
        case "scale":
            return activation * edit.strength
        case "cap":
            return min(activation, edit.strength)
    return activation


def edits_of(request: GenerationRequest) -> int:
    """How many edits its intervention has."""
    return sum(len(sae.steering) + (sae.mode == "reconstruct") for sae in request.intervention)


def edits_apart(request: GenerationRequest, other: GenerationRequest) -> int:
    return abs(edits_of(request) - edits_of(other))


def activations(token: int, watch: Watch, d_sae: int) -> tuple[FeatureActivation, ...]:
    """Of one token: 3, 2 and 1 for its own number and the two behind it, modulo d_sae; nothing else is on."""
    on = {(token + n) % d_sae: 3.0 - n for n in range(3)}
    if watch.top_k is None:
        return tuple(FeatureActivation(feature, on.get(feature, 0.0)) for feature in watch.features or ())
    asked = [feature for feature in on if watch.features is None or feature in watch.features]
    return tuple(FeatureActivation(feature, on[feature]) for feature in asked[: watch.top_k])


def pooled(tokens: Sequence[int], watch: Watch, d_sae: int) -> Pooled:
    """All features over the counted tokens."""
    every = Watch(sae=watch.sae, features=tuple(range(d_sae)))
    columns = list(
        zip(*([each.activation for each in activations(token, every, d_sae)] for token in tokens), strict=True)
    )
    pool: dict[str, Callable[[Sequence[float]], float]] = {
        "max": max,
        "last": lambda column: column[-1],
        "mean": lambda column: sum(column) / len(column),
    }
    values = [pool[watch.pooling or "max"](column) for column in columns] or [0.0] * d_sae
    active = [sum(each > 0 for each in column) for column in columns] or [0] * d_sae
    return Pooled(array("f", values).tobytes(), array("i", active).tobytes())
