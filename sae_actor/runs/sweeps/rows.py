"""Runs of kind `sweep`: a row for each prompt, variant and seed, in this order: a text, and what is measured of it.

Texts are generations on record. Several are made side by side; a row is durable once those before it are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from itertools import takewhile
from typing import Any

import msgspec

from ...domain.measuring.specs import SweepSpec
from ...domain.measuring.sweeps import swept
from ..job import Job
from ..store import RunFile
from .cells import Cell, SweptPrompt, continuations

CHECKED = "prompts checked"


async def sweep(job: Job) -> dict[str, Any]:
    """From the first row that is not durable on; the summary."""
    spec = msgspec.convert(job.effect.spec, SweepSpec)
    variants, seeds = job.effect.variants, job.effect.seeds
    total = job.count("prompts") * len(variants) * len(seeds)
    environment, prompts = await job.environment(), Prompts(job, spec)
    window: deque[asyncio.Task[dict[str, Any]]] = deque()

    async def row(number: int) -> dict[str, Any]:
        rest, seed = divmod(number, len(seeds))
        prompt, variant = divmod(rest, len(variants))
        made = await Cell(job, spec, await prompts.at(prompt), variant, seeds[seed]).row()
        return {**made, "environment": environment}

    try:
        if await job.in_file(lambda file: file.kept(CHECKED)) is None:
            for number in range(job.count("prompts")):
                (await prompts.at(number)).check()
            await job.in_file(lambda file: file.commit(kept={CHECKED: b"1"}))
        at = await job.in_file(lambda file: file.count())
        while at < total or window:
            while at < total and len(window) < job.side_by_side:
                window.append(asyncio.create_task(row(at)))
                at += 1
            await asyncio.wait([window[0]])
            done = list(takewhile(lambda task: task.done() and task.exception() is None, window))
            if not done:
                window.popleft().result()  # raises
            rows = [window.popleft().result() for _ in done]
            await job.in_file(partial(_commit, rows))
            job.announce(at - len(window), total)
    finally:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)
        await prompts.close()
    made = await job.in_file(lambda file: swept([each.name for each in variants], file.all_rows()))
    return {"variants": made, "texts_sha256": {each.role: each.sha256 for each in job.effect.texts}}


class Prompts:
    """The prompts that rows under way are about. Rows come to them in order."""

    def __init__(self, job: Job, spec: SweepSpec) -> None:
        self._job = job
        self._spec = spec
        self._continuations: asyncio.Task[list[tuple[int, ...]]] | None = None
        self._known: dict[int, asyncio.Task[SweptPrompt]] = {}

    async def at(self, number: int) -> SweptPrompt:
        if self._continuations is None:
            self._continuations = asyncio.create_task(continuations(self._job))
        after = await asyncio.shield(self._continuations)
        if number not in self._known:
            for old in [each for each in self._known if each < number - self._job.side_by_side]:
                del self._known[old]
            self._known[number] = asyncio.create_task(SweptPrompt.of(self._job, self._spec, number, after))
        return await asyncio.shield(self._known[number])

    async def close(self) -> None:
        """End what they still do."""
        for task in self._known.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                await task.result().close()
        tasks = [*self._known.values(), *([self._continuations] if self._continuations is not None else [])]
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _commit(rows: list[dict[str, Any]], file: RunFile) -> None:
    file.commit(rows=rows)
