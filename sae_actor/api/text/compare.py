"""`/api/compare`: one request under its intervention and under none."""

from __future__ import annotations

import secrets
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET, MsgspecError, Raw, Struct, UnsetType
from msgspec.structs import replace

from ...domain.rules import admission as rules
from ...errors import BadRequestError
from ...generations import abandon, ends
from ..answers import state_of
from ..disconnects import on_disconnect
from ..operations import operation
from ..requests import body_of
from ..types import Answer, AnyRequest
from .answers import ChatComparison, ChatComparisonChunk, Comparison, ComparisonChunk
from .options import SaeExtension
from .replies import Kind
from .requests import ChatBody, CompletionBody, TextBody
from .routes import ANSWERS, ERRORS, EXAMPLE, named, opened
from .stream import ChunkFrames, made_answer, streamed

BRANCHES = ("steered", "baseline")


@operation("POST", "/api/compare",
           "A completion, or a chat if there are `messages`, once with its intervention and once without, with the "
           "same prompt, settings and seed: `{\"steered\": answer, \"baseline\": answer}`. Streamed, each event holds "
           "a chunk of one of the two, under its name",
           body=CompletionBody, or_body=ChatBody, answers=ANSWERS, returns=(Comparison, ChatComparison),
           items=(ComparisonChunk, ChatComparisonChunk), errors=ERRORS,
           examples={"one edit": {**EXAMPLE, "sae": {"steering": [{"feature": 74, "strength": 100.0}]}}},
           users=True, tag="text")  # fmt: skip
async def post_compare(request: AnyRequest) -> Answer:
    kind = _kind_of(await request.body())
    body: TextBody = await body_of(request, ChatBody if kind == "chat" else CompletionBody)
    own = body.sae or SaeExtension()
    if own.baseline:
        raise BadRequestError("sae.baseline: the comparison always contains the baseline", param="sae.baseline")
    body = replace(body, seed=secrets.randbits(31) if body.seed is None else body.seed)
    body = named(request, body, rules.model_to_ask(state_of(request))[0])
    own = body.sae or SaeExtension()
    bare = replace(body, sae=replace(own, baseline=True, steering=None, interventions=None, preset=None))
    steered = await opened(request, body, kind)
    try:
        baseline = await opened(request, bare, kind)
    except BaseException:
        abandon(steered.texts)
        raise
    if body.stream:
        chunk_type: type[Any] = ChatComparisonChunk if kind == "chat" else ComparisonChunk
        frames = ChunkFrames(lambda chunk, branch: chunk_type(**{BRANCHES[branch]: chunk}))
        return await streamed(request, body, (steered, baseline), frames)
    texts = (*steered.texts, *baseline.texts)
    async with on_disconnect(request, partial(abandon, texts)):
        done = await ends(texts)
    half = len(steered.texts)
    type_: Any = ChatComparison if kind == "chat" else Comparison

    def shown() -> Any:
        return type_(steered=steered.whole(done[:half]), baseline=baseline.whole(done[half:]))

    return await made_answer(request, shown, (steered, baseline))


class _Asked(Struct):
    """What distinguishes a chat from a completion."""

    messages: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET


def _kind_of(raw: bytes) -> Kind:
    try:
        found = msgspec.json.decode(raw, type=_Asked)
    except (MsgspecError, ValueError, RecursionError):
        return "completion"  # decoding the whole of it raises the right error
    if found.messages is UNSET:
        return "completion"
    if found.prompt is not UNSET:
        raise BadRequestError("give exactly one of prompt, messages", param="prompt")
    return "chat"
