"""Runs of kind `evaluate`: a row a group of texts, the sums of all of them as the summary; at the end, what the SAE's
weights say of each feature."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from ..domain.measuring.specs import EvaluateSpec
from ..domain.measuring.summaries import evaluation
from ..ports import ComparedRows, EvaluatedGroup, TextGroup
from .job import GROUP, Job, in_thread

STATE, COMPARED = "sums", "compared"


class Sums(Struct):
    """Of all groups so far."""

    groups: int = 0
    sums: dict[str, float] = {}
    mean_sums: list[float] = []
    firing: list[int] = []
    texts_firing: list[int] = []
    ended: bool = False
    """`max_tokens` was reached."""

    def add(self, found: EvaluatedGroup) -> None:
        total = Counter(self.sums)
        total.update(found.sums)
        self.sums = dict(total)
        self.mean_sums = _added(self.mean_sums, found.mean_sums)
        self.firing = _added(self.firing, found.firing)
        self.texts_firing = _added(self.texts_firing, found.texts_firing)


def _added(one: list[Any], other: tuple[Any, ...]) -> list[Any]:
    return [a + b for a, b in zip(one, other, strict=True)] if one else list(other)


def sums_of(job_state: bytes | None) -> Sums:
    return Sums() if job_state is None else msgspec.msgpack.decode(job_state, type=Sums)


def compared_of(kept: bytes | None) -> ComparedRows | None:
    return None if kept is None else msgspec.msgpack.decode(kept, type=ComparedRows)


async def evaluate(job: Job) -> dict[str, Any]:
    """From the first group that is not durable on; the summary."""
    spec = msgspec.convert(job.effect.spec, EvaluateSpec)
    state = sums_of(await in_thread(lambda: job.file.kept(STATE)))
    total = job.count("texts")
    while not state.ended and state.groups * GROUP < total:
        first = state.groups * GROUP
        left = None if spec.max_tokens is None else spec.max_tokens - int(state.sums.get("tokens", 0))
        contexts = await job.contexts(first, spec.context, left)
        attachment = job.attached(spec.sae_id)
        environment = await job.environment()
        row: dict[str, Any] = {"group": state.groups, "texts": [first, min(first + GROUP, total)]}
        if contexts:
            texts = tuple(ids for _, _, ids in contexts)
            group = TextGroup(attach_position=attachment.request_position, texts=texts, exclude=spec.exclude)
            found = await job.engine.evaluate(group)
            state.add(found)
            row |= evaluation(found.sums, found.mean_sums, found.firing)
            del row["density_histogram"]
        else:
            row |= {"tokens": 0, "excluded": 0, "positions": 0}
        state.groups += 1
        state.ended = spec.max_tokens is not None and state.sums.get("tokens", 0) >= spec.max_tokens
        rows, kept = [{**row, "environment": environment}], {STATE: msgspec.msgpack.encode(state)}
        await in_thread(partial(job.file.commit, rows=rows, kept=kept))
        job.announce(min(state.groups * GROUP, total), total)
    if await in_thread(lambda: job.file.kept(COMPARED)) is None:
        rows_of_it = await job.engine.compare_rows(job.attached(spec.sae_id).request_position)
        kept = {COMPARED: msgspec.msgpack.encode(rows_of_it)}
        await in_thread(partial(job.file.commit, kept=kept))
    summary = evaluation(state.sums, state.mean_sums, state.firing)
    return {**summary, "texts_sha256": next((each.sha256 for each in job.effect.texts), None)}
