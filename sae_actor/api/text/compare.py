"""`/api/compare`: one request under its intervention and under none."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, MsgspecError, Raw, Struct, UnsetType
from msgspec.structs import replace

from ...errors import BadRequestError
from ...generations import Hold, RunningGeneration, abandon, detail_watches
from ..answers import state_of
from ..operations import operation
from ..requests import body_of
from ..types import Answer, AnyRequest
from .answers import ChatComparison, ChatComparisonChunk, Comparison, ComparisonChunk
from .idempotency import Made
from .measuring.detailed import FeatureOfSae
from .options import SaeExtension
from .replies import Kind, Reply
from .requests import ChatBody, CompletionBody, RequestKey, TextBody
from .routes import ANSWERS, EXAMPLE, KEYED, opened, respond_beside
from .stream import ChunkFrames

BRANCHES = ("steered", "baseline")


@operation("POST", "/api/compare",
           "A completion, or a chat if there are `messages`, once with its intervention and once without, with the "
           "same prompt, settings and seed: `{\"steered\": answer, \"baseline\": answer}`. Streamed, each event holds "
           "a chunk of one of the two, under its name",
           body=CompletionBody, or_body=ChatBody, answers=ANSWERS, returns=(Comparison, ChatComparison),
           items=(ComparisonChunk, ChatComparisonChunk), errors=KEYED, keyed=True,
           examples={"one edit": {**EXAMPLE, "sae": {"steering": [{"feature": 74, "strength": 100.0}]}}},
           users=True, tag="text")  # fmt: skip
async def post_compare(request: AnyRequest) -> Answer:
    kind = _kind_of(await request.body())
    body: TextBody = await body_of(request, ChatBody if kind == "chat" else CompletionBody)
    own = body.sae or SaeExtension()
    if own.baseline:
        raise BadRequestError("sae.baseline: the comparison always contains the baseline", param="sae.baseline")
    body = replace(body, seed=secrets.randbits(31) if body.seed is None else body.seed)
    # The preset that `model` may name is the other one's.
    bare = replace(
        body, model="default", sae=replace(own, baseline=True, steering=None, interventions=None, preset=None)
    )

    async def begin(request: AnyRequest, key: RequestKey | None) -> Sequence[Reply]:
        spare: list[Hold] = []
        begun: Sequence[RunningGeneration] = ()
        try:
            steered = await opened(request, body, kind, key=key, spare=spare)
            begun = steered.texts
            baseline = await opened(request, _of_the_same(request, bare, steered), kind, key=key, held=spare)
        except BaseException:
            abandon(begun)
            for hold in spare:
                hold.end()
            raise
        return steered, baseline

    chunk_type: type[Any] = ChatComparisonChunk if kind == "chat" else ComparisonChunk
    frames = ChunkFrames(lambda chunk, branch: chunk_type(**{BRANCHES[branch]: chunk}))
    return await respond_beside(request, (body, bare), kind, begin, shown=_shown, frames=frames)


def _shown(made: Sequence[Made]) -> Struct:
    steered, baseline = (reply.whole(done) for reply, done in made)
    is_chat = made[0][0].kind == "chat"
    type_: Any = ChatComparison if is_chat else Comparison
    compared: Struct = type_(steered=steered, baseline=baseline)
    return compared


def _of_the_same(request: AnyRequest, bare: TextBody, steered: Reply) -> TextBody:
    """With `details`, the baseline reports the same features as the steered text."""
    own, state = bare.sae, state_of(request)
    if own is None or not own.details:
        return bare
    named = detail_watches(steered.texts[0].started, (), ())
    read = [watch for watch in named if (sae := state.saes[watch.sae.sae_id].sae) is None or sae.encodes]
    more = [FeatureOfSae(feature, watch.sae.sae_id) for watch in read for feature in watch.features or ()]
    return replace(bare, sae=replace(own, details_of=(*more, *(own.details_of or ())) or None))


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
