"""`/api/activations`: what an SAE reads in prompts, or the activations that it reads from."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from ...actor import raw_request
from ...domain.messages import OwnIntervention
from ...domain.refs import Exclusions, Feature, HookPoint, Intervention, SaeId, intervention_sha256
from ...domain.rules.admission import model_to_ask, read_sae, reading, reading_under
from ...domain.views.fields import Digest
from ...errors import BadRequestError
from ...generations import read_prompt
from ...ports import FeatureActivation, Watch, labelled
from ..answers import state_of
from ..answers.lists import LongLists, sent_whole
from ..context import check_intervention, context, device, principal
from ..limits import tokens_of
from ..operations import operation
from ..requests import body_of
from ..types import Answer, AnyRequest
from .fields import MESSAGES
from .measuring.inputs import INPUTS, MOST_INPUTS, ContinuedInput, ReadInput, TokenizedBody, read_inputs
from .measuring.places import placed
from .measuring.tensors import MEDIA_TYPE, Written, safetensors
from .measuring.texts import reading as counted
from .measuring.texts import side_by_side
from .messages import ChatMessage

MOST_TOKENS = 2**17
"""In one request."""
MOST_NUMBERS = 2**20
"""Tokens times what is told of each, in JSON."""
MOST_IN_TENSORS = 2**24
"""In a file of tensors."""


class ActivationsBody(Struct, TokenizedBody, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of `prompt`, `messages`, `token_ids`, `inputs`; `features` in place of the `top_k` largest."""

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=1024)] | None = None
    token_ids: list[int] | None = None
    inputs: Annotated[tuple[ContinuedInput, ...], Meta(min_length=1, max_length=MOST_INPUTS)] | None = None
    """Several prompts; the answer then has `results`, one for each."""
    sae_id: SaeId | None = None
    top_k: Annotated[int, Meta(ge=1, le=1024)] = 5
    features: Annotated[tuple[Feature, ...], Meta(min_length=1, max_length=4096)] | None = None
    exclude: Exclusions = ("sink",)
    """Tokens whose `top_k` lists stay empty."""
    sae: OwnIntervention | None = None
    raw: bool = False
    """The activation itself at the SAE's hook point too, as it arrives there; with `Accept:
    application/vnd.safetensors` that alone, as a file of tensors."""
    hook_point: HookPoint | None = None
    """With `raw`: read the activation here, and no SAE."""
    add_special_tokens: bool | None = None
    """Special tokens that the tokenizer puts around a text. null: added to a prompt, not to a chat, whose template
    writes its own."""
    prepend_bos: bool | None = None
    """Begin with the BOS token, or do not; null: as the tokenizer, or the template, does."""
    parse_special: bool = True
    """False: a prompt that spells a control token does not mean it."""

    def __post_init__(self) -> None:
        if self.hook_point is not None and (not self.raw or self.sae_id is not None or self.features is not None):
            raise ValueError("hook_point says where raw activations are read, in place of an SAE")

    @classmethod
    def settle(cls, value: Any) -> None:
        """As `decoded` calls it."""
        MESSAGES.settle(value)
        INPUTS.settle(value)

    def asked(self) -> str | list[int] | list[dict[str, str]] | None:
        """The one prompt; None: `inputs`."""
        messages = None if self.messages is None else [message.plain() for message in self.messages]
        given = [each for each in (self.prompt, messages, self.token_ids) if each is not None]
        if len(given) + (self.inputs is not None) != 1:
            raise BadRequestError("give exactly one of prompt, messages, token_ids, inputs", param="prompt")
        return given[0] if given else None


class TokenReadings(Struct, frozen=True, kw_only=True):
    """A prompt token by token."""

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    is_special: tuple[bool, ...]
    is_sink: tuple[bool, ...]
    features: tuple[tuple[FeatureActivation, ...], ...]
    raw: tuple[tuple[float, ...], ...] | UnsetType = UNSET
    """The activation that arrived at each token."""


class ReadActivations(TokenReadings, frozen=True, kw_only=True):
    """What an SAE reads at each token of a prompt."""

    sae_id: str | None
    """null: none was read, see `hook_point`."""
    intervention_sha256: Digest


class InputReadings(TokenReadings, frozen=True, kw_only=True):
    """One of several prompts."""

    input: int
    """Its place in the request, from 0."""
    id: str | UnsetType = UNSET


class ReadInputs(Struct, frozen=True, kw_only=True):
    """What an SAE reads in each of several prompts."""

    results: tuple[InputReadings, ...]
    sae_id: str | None
    intervention_sha256: Digest


class Readings(Struct, frozen=True, kw_only=True):
    """The answer as described: that of one prompt, or `results` of several. Generators of clients read one object, and
    no union."""

    sae_id: str | None
    intervention_sha256: Digest
    tokens: tuple[str, ...] | UnsetType = UNSET
    token_ids: tuple[int, ...] | UnsetType = UNSET
    is_special: tuple[bool, ...] | UnsetType = UNSET
    is_sink: tuple[bool, ...] | UnsetType = UNSET
    features: tuple[tuple[FeatureActivation, ...], ...] | UnsetType = UNSET
    raw: tuple[tuple[float, ...], ...] | UnsetType = UNSET
    results: tuple[InputReadings, ...] | UnsetType = UNSET


ERRORS = (
    "model_not_loaded", "not_ready", "sae_not_attached", "sae_not_found", "sae_ambiguous", "feature_out_of_range",
    "conflicting_edits", "mailbox_full", "out_of_memory", "read_only", "sae_unsupported", "deadline_exceeded",
    "positions_unknown", "model_not_found", "sae_incompatible", "layer_out_of_range",
    "quota_exceeded",
)  # fmt: skip


@operation("POST", "/api/activations",
           "Activations of an SAE at each token of a prompt, before the SAE's own edits. These are the `top_k` largest "
           "without zeros, empty at tokens that `exclude` names; or those of `features`, in their order, at every "
           "token. `is_sink` marks attention sinks: the first token, and tokens whose norm at the hook point is above "
           "5 times the median of the prompt's first 512. The prompt runs without an intervention unless `sae` gives "
           "one; the log records nothing of it. With `inputs` the answer has `results`, one for each. A file of "
           "tensors has `raw` [tokens, width], `token_ids` and `is_sink`; of several inputs `raw.0`, `raw.1`, …",
           body=ActivationsBody, returns=Readings, errors=ERRORS,
           answers=((200, "application/json"), (200, MEDIA_TYPE)),
           examples={"largest": {"prompt": "I love this book", "top_k": 3},
                     "of several": {"inputs": [{"prompt": "I love it", "id": "a"}, {"prompt": "I hate it"}]}},
           users=True, tag="text")  # fmt: skip
async def post_activations(request: AnyRequest) -> Answer:
    body: ActivationsBody = await body_of(request, ActivationsBody)
    asked, as_tensors = body.asked(), MEDIA_TYPE in request.headers.get("accept", "")
    check_intervention(request, body.sae or OwnIntervention(), usual_is_none=True)
    if as_tensors and not body.raw:
        raise BadRequestError("tensors are given of raw activations: ask for them with raw", param="raw")
    engine = device(request)
    state = state_of(request)
    model, position = model_to_ask(state)
    # Refuses before the prompt is read.
    place = None if body.hook_point is None else placed(body.hook_point, model)
    sae = None if place is not None else read_sae(state, body.sae_id, body.features or (), "reading activations")
    if asked is None:
        prompts = await read_inputs(request, body.inputs or (), body.tokenization)
    else:
        prompts = [ReadInput(prompt=await tokens_of(request, engine, asked, body.tokenization))]
    described = None if sae is None else state.saes[sae.sae_id].sae
    point = sae.hook_point if sae is not None else place
    assert point is not None
    features = (
        0
        if sae is None or as_tensors
        else len(body.features or ()) or min(body.top_k, 1024 if described is None else described.d_sae)
    )
    _refuse_much(body, prompts, features, model.width(point) or model.hidden_size, as_tensors=as_tensors)
    own = None if body.sae is None else await raw_request(body.sae, state, engine)
    seconds, lists = context(request).generations.deadline_seconds, LongLists()
    labels = {} if sae is None else await context(request).features.labels(sae.sae_id)

    async def one(given: ReadInput) -> _Reading:
        # The state of now: what was detached meanwhile is not read, nor are the ids of one model by another.
        now, turns = state_of(request), given.prompt.turns
        if sae is None:
            intervention, needed = reading_under(now, own, turns, exclude=body.exclude, model_position=position)
            watched = [Watch.raw_at(point)]
        else:
            intervention, needed, read = reading(
                now, sae.sae_id, body.features or (), own, turns, exclude=body.exclude, model_position=position
            )
            top_k = None if body.features is not None else body.top_k
            watched = [Watch(sae=read, top_k=top_k, features=body.features, exclude=body.exclude)]
            watched += [Watch.raw_at(read.hook_point)] if body.raw else []
        found = await read_prompt(
            engine,
            given.token_ids,
            intervention,
            needed,
            tuple(watched),
            deadline_seconds=seconds,
            share=principal(request),
        )
        sinks, raw = found[-1].sinks, found[-1].raw
        if as_tensors:
            return _Reading(intervention, sinks, raw)
        rows: list[tuple[FeatureActivation, ...]] = [()] * len(sinks) if sae is None else list(found[0].rows)
        del found  # encoded here and now, so that no more than some prompts are held as objects
        return _Reading(
            intervention,
            sinks,
            raw,
            await lists.add(rows, partial(labelled, labels=labels)),
            await lists.add(_rows(raw, len(sinks)), _numbers) if body.raw else UNSET,
        )

    with counted(request, prompts):
        read = await side_by_side(request, [partial(one, each) for each in prompts])
    sae_id, digest = None if sae is None else sae.sae_id, intervention_sha256(read[0].intervention)
    if as_tensors:
        metadata = {"hook_point": str(point), "intervention_sha256": digest}
        content = await asyncio.to_thread(_tensors, prompts, read, metadata, numbered=asked is None)
        return sent_whole(request, content, MEDIA_TYPE)
    if asked is not None:
        ((given, told),) = zip(prompts, read, strict=True)
        view = ReadActivations(**_told(given, told), sae_id=sae_id, intervention_sha256=digest)
        return lists.answer(request, view)
    results = [
        InputReadings(**_told(given, told), input=at, id=UNSET if each.id is None else each.id)
        for at, (each, given, told) in enumerate(zip(body.inputs or (), prompts, read, strict=True))
    ]
    return lists.answer(request, ReadInputs(results=tuple(results), sae_id=sae_id, intervention_sha256=digest))


class _Reading(Struct, frozen=True):
    """Of one prompt."""

    intervention: Intervention
    sinks: tuple[bool, ...]
    raw: bytes
    features: Any = ()
    raw_rows: Any = UNSET
    """Both as they stand in the answer's view."""


def _refuse_much(
    body: ActivationsBody, prompts: Sequence[ReadInput], features: int, width: int, *, as_tensors: bool
) -> None:
    """`BadRequestError` for an answer that is too large."""
    tokens, most = sum(len(each.token_ids) for each in prompts), MOST_IN_TENSORS if as_tensors else MOST_NUMBERS
    if tokens > MOST_TOKENS:
        raise BadRequestError(f"{tokens} tokens; at most {MOST_TOKENS} are read in a request", param="inputs")
    for count, what, param in (
        (features, "features", "features" if body.features is not None else "top_k"),
        (width if body.raw else 0, "numbers of a raw activation", "raw"),
    ):
        if tokens * count > most:
            raise BadRequestError(
                f"{tokens} tokens × {count} {what} are {tokens * count} numbers; at most {most} are given in an "
                f"answer{'' if as_tensors else ' in JSON'}: ask for fewer, or in several requests",
                param=param,
            )


def _rows(raw: bytes, count: int) -> list[memoryview]:
    size = len(raw) // count
    return [memoryview(raw)[at : at + size] for at in range(0, len(raw), size)]


def _numbers(row: memoryview) -> list[float]:
    return array("f", row.tobytes()).tolist()


def _told(given: ReadInput, read: _Reading) -> dict[str, Any]:
    """Fields of `TokenReadings`."""
    further = given.continuation.special if given.continuation is not None else ()
    return {
        "tokens": given.tokens,
        "token_ids": given.token_ids,
        "is_special": (*given.prompt.special, *further),
        "is_sink": read.sinks,
        "features": read.features,
        "raw": read.raw_rows,
    }


def _tensors(
    prompts: Sequence[ReadInput], read: Sequence[_Reading], metadata: dict[str, str], *, numbered: bool
) -> bytes:
    tensors = {}
    for at, (given, each) in enumerate(zip(prompts, read, strict=True)):
        ending, count = f".{at}" if numbered else "", len(given.token_ids)
        tensors[f"raw{ending}"] = Written("F32", (count, len(each.raw) // 4 // count), each.raw)
        tensors[f"token_ids{ending}"] = Written("I64", (count,), array("q", given.token_ids).tobytes())
        tensors[f"is_sink{ending}"] = Written("BOOL", (count,), bytes(each.sinks))
    return safetensors(tensors, metadata)
