"""The tokens that a generation was given: from the log, or from a file with the recorded digest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import MsgspecError

from ..domain.chats import Tokenization
from ..domain.events import GenerationFinished, GenerationStarted
from ..errors import BadRequestError
from ..generations.records import token_digest
from .testbed import NotComparable, Testbed


async def prompt_of(
    started: GenerationStarted, finished: GenerationFinished, bench: Testbed, prompts: Sequence[str]
) -> tuple[tuple[int, ...], str]:
    recorded = finished.prompt_token_ids
    if recorded is not None:
        if digest(finished, recorded) != finished.prompt_sha256:
            raise NotComparable("the recorded prompt does not match the recorded digest")
        return recorded, "log"
    for each in (candidate for prompt in prompts for candidate in _readings(prompt)):
        try:
            ids = (await bench.engine.tokenize(each, started.tokenization)).token_ids
        except BadRequestError:
            continue
        if digest(finished, ids) == finished.prompt_sha256:
            return ids, "file"
    raise NotComparable("the prompt of the file does not match the recorded digest")


def _readings(prompt: str) -> list[Any]:
    """What a file may mean: JSON ids, JSON messages, an object with one of these or a prompt, or the text itself, with
    and without its last line end."""
    readings: list[Any] = [prompt, prompt.removesuffix("\n")]
    try:
        found = json.loads(prompt)
    except (ValueError, RecursionError):
        return readings
    if isinstance(found, dict):  # an input of `/api/score`
        given = [found[name] for name in ("prompt", "messages", "token_ids") if found.get(name) is not None]
        readings[:0] = [each for each in given if isinstance(each, str)]
        found = given[0] if given else found
    for kind in (list[int], list[dict[str, str]]):
        try:
            readings.insert(0, msgspec.convert(found, kind))
        except MsgspecError:
            continue
    return readings


def digest(finished: GenerationFinished, tokens: Sequence[int]) -> str:
    try:
        return token_digest(finished.salt, tokens)
    except (ValueError, OverflowError):
        raise NotComparable("its salt or its tokens are malformed") from None


async def continuation_of(
    started: GenerationStarted, finished: GenerationFinished, bench: Testbed, prompts: Sequence[str]
) -> tuple[int, ...]:
    """What followed the prompt of a text that was scored. prompts: files; JSON objects in them may have a
    `continuation`."""
    if digest(finished, ()) == finished.output_sha256:
        return ()
    if finished.output_token_ids is not None:
        if digest(finished, finished.output_token_ids) != finished.output_sha256:
            raise NotComparable("the recorded continuation does not match the recorded digest")
        return finished.output_token_ids
    how = started.tokenization or Tokenization()
    plain = Tokenization(add_special_tokens=False, parse_special=how.parse_special)
    for each in prompts:
        further: Any = (_object(each) or {}).get("continuation")
        if not isinstance(further, str | list):
            continue
        try:
            ids = (await bench.engine.tokenize(further, plain if isinstance(further, str) else None)).token_ids
        except BadRequestError:
            continue
        if digest(finished, ids) == finished.output_sha256:
            return ids
    raise NotComparable(
        "what followed the prompt was not recorded ([audit] record_text); give both with --prompt-file, as the JSON of "
        "the input"
    )


def _object(file: str) -> dict[str, Any] | None:
    try:
        found = json.loads(file)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
