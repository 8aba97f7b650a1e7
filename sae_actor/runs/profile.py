"""Runs of kind `profile`: what was read is durable a group of texts at a time; at the end, a row a feature."""

from __future__ import annotations

import array
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec

from ..domain.measuring.specs import ProfileSpec
from ..errors import BadRequestError, SAENotAttachedError
from ..ports import ReadGroup, TextGroup
from .features import Profile, ReadTexts, profile
from .job import GROUP, Job, in_thread

SUMMARY, TOKENS = "summary", "tokens"
Contexts = list[tuple[int, int, tuple[int, ...]]]


async def profiled(job: Job) -> dict[str, Any]:
    """From the first group that is not durable on; the summary."""
    spec = msgspec.convert(job.effect.spec, ProfileSpec)
    if (ready := await in_thread(partial(job.file.kept, SUMMARY))) is not None:
        summary: dict[str, Any] = msgspec.json.decode(ready)
        return summary
    total = job.count("texts")
    groups = await in_thread(partial(job.file.count, "groups"))
    known = await in_thread(partial(job.file.kept, TOKENS))
    read = 0 if known is None else int(known)
    while groups * GROUP < total and (spec.max_tokens is None or read < spec.max_tokens):
        first = groups * GROUP
        left = None if spec.max_tokens is None else spec.max_tokens - read
        contexts = await job.contexts(first, spec.length, left)
        attachment = job.attached(spec.sae_id)
        await job.environment()
        texts = tuple(ids for _, _, ids in contexts)
        found = ReadGroup(features=b"", positions=b"", values=b"", norms=b"", excluded=b"")
        if texts:
            group = TextGroup(attach_position=attachment.request_position, texts=texts, exclude=spec.exclude)
            found = await job.engine.read_group(group)
        read += sum(map(len, texts))
        data, kept = msgspec.msgpack.encode(_durable(found, contexts)), {TOKENS: str(read).encode()}
        await in_thread(partial(job.file.commit, group=data, kept=kept))
        groups += 1
        job.announce(min(groups * GROUP, total), total)
    d_sae = job.width(spec.sae_id)
    made = await in_thread(lambda: profile(list(job.file.groups()), d_sae, spec))
    if made.tokens <= made.excluded:  # a density of 0 would be said of every feature, and be believed
        raise BadRequestError("no text has a token that is counted", param="spec.texts")
    environment = await job.environment()
    rows = [{**row, "environment": environment} for row in await in_thread(lambda: list(made.rows))]
    written = await _written(job, rows)
    summary = _summary(made, rows, job)
    await in_thread(partial(job.file.commit, rows=written, kept={SUMMARY: msgspec.json.encode(summary)}))
    return summary


def _durable(found: ReadGroup, contexts: Contexts) -> ReadTexts:
    ids, texts, places, numbers = (array.array(kind) for kind in "IIiI")
    for number, (text, first, piece) in enumerate(contexts):
        ids.extend(piece)
        texts.extend([text] * len(piece))
        places.extend(range(first, first + len(piece)))
        numbers.extend([number] * len(piece))
    columns = (each.tobytes() for each in (ids, texts, places, numbers))
    return ReadTexts(found.features, found.positions, found.values, found.norms, found.excluded, *columns)


def _examples(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from row["examples"]
    for interval in row["quantiles"]:
        yield from interval["examples"]


async def _written(job: Job, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the text of tokens in place of their ids."""
    known: dict[int, str] = {}
    for row in rows:
        for example in _examples(row):
            for token in example["tokens"]:
                if token not in known:
                    known[token] = await job.engine.detokenize([token])
            example["tokens"] = [known[token] for token in example["tokens"]]
    return rows


def _summary(made: Profile, rows: list[dict[str, Any]], job: Job) -> dict[str, Any]:
    if not job.effect.saes:
        raise SAENotAttachedError("the run names no SAE")
    return {
        "features": len(rows),
        "alive": sum(row["max"] > 0 for row in rows),
        "median_norm": made.median_norm,
        "tokens": made.tokens,
        "excluded": made.excluded,
        "texts_sha256": next((each.sha256 for each in job.effect.texts), None),
    }
