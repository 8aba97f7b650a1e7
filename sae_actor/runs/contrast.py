"""Runs of kind `contrast`: texts are pooled and durable a group at a time; at the end, a row a feature.

What is read of a text, and what the lists come to, is computed as `/api/contrast` does it.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from ..domain.measuring.specs import ContrastSpec
from ..domain.rules.admission import reading
from ..errors import BadRequestError
from ..generations import read_activations
from ..measuring.rows import ContrastedFeature
from ..ports import Activations, Watch
from .job import GROUP, Job
from .lists import Item
from .pooled import Counted, Lists, contrasted, pooled_group, refuse_few
from .store import RunFile

COUNTED, SUMMARY = "counted", "summary"
SIDES = ("positive", "negative")


async def contrast(job: Job) -> dict[str, Any]:
    """From the first group that is not durable on; the summary."""
    spec = msgspec.convert(job.effect.spec, ContrastSpec)
    if (ready := await job.in_file(lambda file: file.kept(SUMMARY))) is not None:
        summary: dict[str, Any] = msgspec.json.decode(ready)
        return summary
    known = await job.in_file(lambda file: file.kept(COUNTED))
    counted = Counted() if known is None else msgspec.msgpack.decode(known, type=Counted)
    positive, total = job.count("positive"), sum(map(job.count, SIDES))
    environment = await job.environment()
    while (first := counted.groups * GROUP) < total:
        items = await job.in_file(partial(_items, first=first, positive=positive))
        found = await _read(job, spec, items, first)
        group, counted = await asyncio.to_thread(pooled_group, found, counted)
        kept = {COUNTED: msgspec.msgpack.encode(counted)}
        await job.in_file(partial(RunFile.commit, group=group, kept=kept))
        job.announce(min(first + GROUP, total), total)
    lists = await job.in_file(lambda file: Lists.of(file.groups(), positive))
    refuse_few(lists.positive, lists.negative, spec.held_out)
    best = await asyncio.to_thread(contrasted, lists, counted, spec)
    labels = await job.labels(spec.sae_id or "")
    rows = [
        {**msgspec.to_builtins(replace(each, label=labels.get(each.feature))), "environment": environment}
        for each in best
    ]
    summary = _summary(job, spec, counted, lists, best)
    await job.in_file(partial(RunFile.commit, rows=rows, kept={SUMMARY: msgspec.json.encode(summary)}))
    return summary


def _items(file: RunFile, first: int, positive: int) -> list[Item]:
    """Texts of a group; the negative ones follow the positive ones."""
    mine = file.texts("positive", first, min(GROUP, max(0, positive - first)))
    return mine + file.texts("negative", max(0, first - positive), GROUP - len(mine))


async def _read(job: Job, spec: ContrastSpec, items: list[Item], first: int) -> list[Activations]:
    places = asyncio.Semaphore(job.side_by_side)

    async def one(number: int, item: Item) -> Activations:
        async with places:
            at = job.model_position
            try:
                read = await job.engine.tokenize(item.asked)
                _, turns, sae = reading(
                    job.state, spec.sae_id, (), None, read.turns, exclude=spec.exclude, model_position=at
                )
            except BadRequestError as error:
                side, at = ("positive", number) if number < job.count("positive") else (
                    "negative", number - job.count("positive"))  # fmt: skip
                raise BadRequestError(f"{side}[{at}]: {error.detail}", param=side) from None
            watch = Watch(sae=sae, pooling=spec.pooling, exclude=spec.exclude)
            return await read_activations(
                job.engine, read.token_ids, (), turns, watch, deadline_seconds=0.0, background=True
            )

    tasks = [asyncio.create_task(one(number, item)) for number, item in enumerate(items, first)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _summary(
    job: Job, spec: ContrastSpec, counted: Counted, lists: Lists, best: list[ContrastedFeature]
) -> dict[str, Any]:
    return {
        "sae_id": spec.sae_id,
        "features": len(best),
        "positive": lists.positive,
        "negative": lists.negative,
        "left_out": job.count("positive") + job.count("negative") - lists.positive - lists.negative,
        "tokens": counted.tokens,
        "excluded": counted.excluded,
        "best": [{"feature": each.feature, "auroc": each.auroc} for each in best[:10]],
        "texts_sha256": {each.role: each.sha256 for each in job.effect.texts},
    }
