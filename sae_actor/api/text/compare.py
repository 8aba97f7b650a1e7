"""`/api/compare`: one request under its intervention and under none."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec import UNSET, MsgspecError, Raw, Struct, UnsetType
from msgspec.structs import replace

from ...errors import BadRequestError
from ..answers import answer
from ..operations import operation
from ..requests import body_of
from ..types import Answer, AnyRequest
from .answers import ChatComparison, ChatComparisonChunk, Comparison, ComparisonChunk
from .options import SaeExtension
from .parallel import abandon, ends, merged
from .replies import Kind, Reply
from .requests import ChatBody, CompletionBody, TextBody
from .routes import ANSWERS, ERRORS, EXAMPLE, opened
from .stream import abandoned_with_client, chunks, streamed

BRANCHES = ("steered", "baseline")


@operation("POST", "/api/compare",
           "A completion, or a chat if there are `messages`, once with its intervention and once without, with the "
           "same prompt, settings and seed: `{\"steered\": answer, \"baseline\": answer}`. Streamed, each event holds "
           "a chunk of one of the two, under its name",
           body=CompletionBody, or_body=ChatBody, answers=ANSWERS, returns=(Comparison, ChatComparison),
           items=(ComparisonChunk, ChatComparisonChunk), errors=ERRORS,
           examples={"one edit": {**EXAMPLE, "sae": {"steering": [{"feature": 74, "strength": 100.0}]}}},
           tag="text")  # fmt: skip
async def post_compare(request: AnyRequest) -> Answer:
    kind = _kind_of(await request.body())
    body: TextBody = await body_of(request, ChatBody if kind == "chat" else CompletionBody)
    own = body.sae or SaeExtension()
    if own.baseline:
        raise BadRequestError("sae.baseline: the comparison always contains the baseline", param="sae.baseline")
    body = replace(body, seed=secrets.randbits(31) if body.seed is None else body.seed)
    bare = replace(body, sae=replace(own, baseline=True, steering=None, interventions=None))
    steered = await opened(request, body, kind)
    try:
        baseline = await opened(request, bare, kind)
    except BaseException:
        abandon(steered.texts)
        raise
    texts = (*steered.texts, *baseline.texts)
    if body.stream:
        parts = _side_by_side((steered, baseline), body)
        return await streamed(request, parts, texts)
    async with abandoned_with_client(request, texts):
        done = await ends(texts)
    half = len(steered.texts)
    type_: type[Any] = ChatComparison if kind == "chat" else Comparison
    return answer(request, type_(steered=steered.whole(done[:half]), baseline=baseline.whole(done[half:])))


class _Asked(Struct):
    """What distinguishes a chat from a completion."""

    messages: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET


def _kind_of(raw: bytes) -> Kind:
    try:
        asked = msgspec.json.decode(raw, type=_Asked)
    except (MsgspecError, ValueError, RecursionError):
        return "completion"  # decoding the whole of it raises the right error
    if asked.messages is UNSET:
        return "completion"
    if asked.prompt is not UNSET:
        raise BadRequestError("give exactly one of prompt, messages", param="prompt")
    return "chat"


async def _side_by_side(replies: tuple[Reply, Reply], body: TextBody) -> AsyncIterator[Struct]:
    """Chunks of both as they come, each under its name; if one fails, both end."""
    type_: type[Any] = ChatComparisonChunk if replies[0].kind == "chat" else ComparisonChunk
    usage = {"include_usage": body.includes_usage, "counts_usage": body.counts_usage}
    try:
        async for branch, chunk in merged([chunks(reply, **usage) for reply in replies]):
            yield type_(**{BRANCHES[branch]: chunk})
    finally:
        abandon([text for reply in replies for text in reply.texts])
