"""The cells of a sweep: a prompt under a variant with a seed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from ...domain.chats import MessageSpan, Tokenization
from ...domain.commands import RequestedIntervention
from ...domain.events import RunVariant, Sampling
from ...domain.measuring.specs import SweepSpec
from ...domain.messages import AdmitGeneration, OwnIntervention
from ...domain.refs import Intervention
from ...domain.rules.admission import attached_sae, reading_under
from ...domain.structs import filled
from ...errors import BadRequestError, SAENotAttachedError
from ...generations import (
    Completed,
    Continued,
    Requested,
    RunningGeneration,
    TokenOptions,
    read_behind,
    score_behind,
)
from ...ports import Tokenized, Watch
from ..job import Job

PRINCIPAL = "system"
BARE = Tokenization(add_special_tokens=False)


async def continuations(job: Job) -> list[tuple[int, ...]]:
    """As tokens, each tokenized by itself."""
    count = job.count("continuations")
    items = await job.in_file(lambda file: file.texts("continuations", 0, count))
    return [(await job.engine.tokenize(item.text or "", BARE)).token_ids for item in items]


class SweptPrompt:
    """A prompt as the model reads it, and what its rows share."""

    def __init__(
        self,
        job: Job,
        spec: SweepSpec,
        read: Tokenized,
        *,
        number: int,
        is_chat: bool,
        after: Sequence[tuple[int, ...]],
    ) -> None:
        """after: the continuations."""
        self.number = number
        self.is_chat = is_chat
        self.read = read
        self.model_position = job.model_position
        self._job = job
        self._spec = spec
        self._after = after
        self._logprobs: dict[int, asyncio.Task[list[float]]] = {}
        """Variant → log probability of each continuation."""

    @classmethod
    async def of(cls, job: Job, spec: SweepSpec, number: int, after: Sequence[tuple[int, ...]]) -> SweptPrompt:
        (item,) = await job.in_file(lambda file: file.texts("prompts", number, 1))
        try:
            read = await job.engine.tokenize(item.asked)
        except BadRequestError as error:
            raise _of_prompt(number, error) from None
        return cls(job, spec, read, number=number, is_chat=item.messages is not None, after=after)

    def check(self) -> None:
        """`BadRequestError` if a text of it could not be made: it is too long, or an edit needs roles that it lacks."""
        longest = max([self._spec.max_tokens, *map(len, self._after)])
        tokens, most = len(self.read.token_ids), self._job.positions
        try:
            if tokens + longest > most:
                raise BadRequestError(f"{tokens} tokens and {longest} more are too many: there is room for {most}")
            for variant in self._job.effect.variants:
                own = OwnIntervention(interventions=_requested(variant))
                reading_under(self._job.state, own, self.read.turns, model_position=self.model_position)
        except BadRequestError as error:
            raise _of_prompt(self.number, error) from None

    async def logprobs(
        self, variant: int, intervention: Intervention, turns: Sequence[MessageSpan], *, deterministic: bool
    ) -> list[float]:
        """Of each continuation after the prompt under the variant, computed once."""

        async def score() -> list[float]:
            texts = [
                Continued(
                    prompt=self.read.token_ids,
                    continuation=ids,
                    intervention=intervention,
                    turns=turns,
                    deterministic=deterministic,
                )
                for ids in self._after
            ]
            found = await asyncio.gather(*(score_behind(self._job.engine, text) for text in texts))
            return [each.sum_logprob for each in found]

        if variant not in self._logprobs:
            self._logprobs[variant] = asyncio.create_task(score())
        return await asyncio.shield(self._logprobs[variant])

    async def close(self) -> None:
        for task in self._logprobs.values():
            task.cancel()
        await asyncio.gather(*self._logprobs.values(), return_exceptions=True)


class Cell:
    """One text, and its row."""

    def __init__(self, job: Job, spec: SweepSpec, prompt: SweptPrompt, variant: int, seed: int) -> None:
        self._job = job
        self._spec = spec
        self._prompt = prompt
        self._number = variant
        self._variant = job.effect.variants[variant]
        self._seed = seed
        self._deterministic = bool(spec.variants[variant].sae.get("deterministic"))

    async def row(self) -> dict[str, Any]:
        text, done = await self._made()
        ids, started = done.finished.token_ids, text.started
        unsteered = await score_behind(self._job.engine, self._continued(ids, (), ()))
        receipt = done.record.receipt
        row = {
            "prompt": self._prompt.number,
            "variant": self._variant.name,
            "seed": self._seed,
            "text": done.finished.text,
            "finish_reason": done.finished.reason,
            "generation_id": started.generation_id,
            "ce_unsteered": -unsteered.sum_logprob / unsteered.counted,
            "receipt": None if receipt is None else msgspec.to_builtins(receipt),
        }
        if self._spec.features is not None:
            row["activations"] = await self._activations(ids, started.intervention, started.turns)
        if self._job.count("continuations"):
            row["continuation_logprobs"] = await self._prompt.logprobs(
                self._number, started.intervention, started.turns, deterministic=self._deterministic
            )
        return row

    async def _made(self) -> tuple[RunningGeneration, Completed]:
        """The text, made again if it gave way to another. `SAENotAttachedError` if an SAE was detached."""
        prompt = self._prompt.read
        options = TokenOptions(prompt=prompt.tokens)
        asked = Requested(self._admission, prompt.token_ids, options, background=True)
        while True:
            text = await self._job.generations.open_behind(asked, principal=PRINCIPAL)
            if text.started.intervention_sha256 != self._variant.intervention_sha256:
                text.abandon()
                raise SAENotAttachedError("an SAE was attached otherwise while the run went on")
            done = await text.result()
            if done.finished.reason == "intervention_removed":
                raise SAENotAttachedError("an SAE was detached while a text was made")
            if done.finished.reason != "cancelled":
                return text, done

    def _admission(self, generation_id: str) -> AdmitGeneration:
        prompt, spec, own = self._prompt, self._spec, _requested(self._variant)
        return filled(
            AdmitGeneration,
            prompt.read,
            generation_id=generation_id,
            kind="chat" if prompt.is_chat else "completion",
            tokens_prompt=len(prompt.read.token_ids),
            sampling=Sampling(temperature=spec.temperature, top_p=1.0, max_tokens=spec.max_tokens, seed=self._seed),
            baseline=self._variant.baseline,
            interventions=None if self._variant.baseline else own,
            deterministic=self._deterministic,
            tag=f"run:{self._job.effect.run_id}",
            model_position=prompt.model_position,
        )

    def _continued(self, ids: tuple[int, ...], intervention: Intervention, turns: Sequence[MessageSpan]) -> Continued:
        return Continued(
            prompt=self._prompt.read.token_ids,
            continuation=ids,
            intervention=intervention,
            turns=turns,
            deterministic=self._deterministic,
        )

    async def _activations(
        self, ids: tuple[int, ...], intervention: Intervention, turns: Sequence[MessageSpan]
    ) -> list[dict[str, Any]]:
        """Of each feature the mean over all new tokens under the variant, before the SAE's own edits; attention sinks
        are left out, and null stands where nothing else is there."""
        features = self._spec.features or ()
        watch = Watch(
            sae=attached_sae(self._job.state, self._spec.sae_id, features), features=features, exclude=("sink",)
        )
        read = await read_behind(self._job.engine, self._continued(ids, intervention, turns), watch)
        first = len(self._prompt.read.token_ids) - read.first
        rows = [row for row, out in zip(read.rows[first:], read.excluded[first:], strict=True) if not out]
        return [
            {
                "feature": feature,
                "activation": math.fsum(row[at].activation for row in rows) / len(rows) if rows else None,
            }
            for at, feature in enumerate(features)
        ]


def _requested(variant: RunVariant) -> tuple[RequestedIntervention, ...]:
    """The frozen intervention as a request would bring it along."""
    return tuple(
        RequestedIntervention(sae_id=each.sae_id, mode=each.mode, steering=each.steering, exclude=each.exclude)
        for each in variant.intervention
    )


def _of_prompt(number: int, error: BadRequestError) -> BadRequestError:
    return BadRequestError(f"prompt {number}: {error.detail}", param=f"prompts[{number}]")
