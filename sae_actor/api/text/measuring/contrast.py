"""`/api/contrast`: the features that tell two lists of texts apart."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from msgspec import Meta, Struct
from msgspec.structs import replace

from ....domain.refs import Exclusions, SaeId
from ....domain.rules import admission as rules
from ....domain.rules.admission import model_to_ask, read_sae
from ....errors import BadRequestError
from ....generations import read_activations
from ....measuring.rows import ContrastedFeature, held_out_of
from ....ports import Activations, Pooling, Watch
from ...answers import answer, state_of
from ...context import context, device, principal
from ...disconnects import heard
from ...operations import operation
from ...requests import body_of
from ...types import Answer, AnyRequest
from .inputs import ReadInput, read_inputs
from .texts import Texts, inputs_of, reading, refuse_bare, settle_texts, side_by_side

MOST_TEXTS = 256
MOST_VALUES = 2**25
"""Texts times features."""


class ContrastBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Two lists of texts or chats; together at most 256."""

    positive: Texts
    negative: Texts
    sae_id: SaeId | None = None
    """An attached SAE; null: the only one."""
    pooling: Pooling = "max"
    """What stands for a text: each feature's largest activation over its counted tokens, the mean, or the one at the
    last of them."""
    exclude: Exclusions = ("sink", "special")
    """Tokens that are not counted."""
    top: Annotated[int, Meta(ge=1, le=1024)] = 20
    """So many features."""
    held_out: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """This share of each list, its last texts, has no part in the order and the thresholds; it is measured by itself,
    as `held_out` of each feature. Features that are chosen and measured on the same texts look better than they are."""

    @classmethod
    def settle(cls, value: Any) -> None:
        """As `decoded` calls it."""
        settle_texts(value, "positive", "negative")

    def __post_init__(self) -> None:
        if (texts := len(self.positive) + len(self.negative)) > MOST_TEXTS:
            raise ValueError(f"{texts} texts; at most {MOST_TEXTS} are contrasted in a request")
        for texts in (len(self.positive), len(self.negative)):
            if self.held_out > 0 and texts <= held_out_of(texts, self.held_out):
                raise ValueError(f"held_out {self.held_out:g} of {texts} texts leaves none to choose features by")


class Contrasted(Struct, frozen=True, kw_only=True):
    """Features by |auroc − ½|, then by |difference|, then by number."""

    features: tuple[ContrastedFeature, ...]
    sae_id: str
    tokens: int
    """Counted, in all texts together."""
    excluded: int
    """Left out."""


@operation("POST", "/api/contrast",
           "The features that tell two lists of texts or chats apart. Of each text, read without an intervention, the "
           "activations of every feature are pooled over its counted tokens; `auroc` is the share of pairs in which "
           "the positive text has more, ties half. The log records nothing of it",
           body=ContrastBody, returns=Contrasted, users=True, tag="text",
           errors=("model_not_loaded", "not_ready", "sae_not_attached", "sae_not_found", "sae_ambiguous",
                   "sae_unsupported", "mailbox_full", "out_of_memory", "read_only", "deadline_exceeded",
                   "positions_unknown", "quota_exceeded"),
           examples={"moods": {"positive": ["I love this book", "What a lovely day"],
                               "negative": ["I hate this book", "What an awful day"], "top": 5}})  # fmt: skip
async def post_contrast(request: AnyRequest) -> Answer:
    body: ContrastBody = await body_of(request, ContrastBody)
    engine, state = device(request), state_of(request)
    position = model_to_ask(state)[1]
    sae = read_sae(state, body.sae_id, (), "contrast")  # refuses before the texts are read
    described = state.saes[sae.sae_id].sae
    texts = len(body.positive) + len(body.negative)
    if described is not None and texts * described.d_sae > MOST_VALUES:
        raise BadRequestError(
            f"{texts} texts × {described.d_sae} features are {texts * described.d_sae} pooled activations; at most "
            f"{MOST_VALUES} are contrasted in a request",
            param="positive",
        )
    prompts = [
        await read_inputs(request, inputs_of(some), name=name)
        for name, some in (("positive", body.positive), ("negative", body.negative))
    ]
    seconds = context(request).generations.deadline_seconds
    watch = Watch(sae=sae, pooling=body.pooling, exclude=body.exclude)

    async def one(given: ReadInput) -> Activations:
        # The state of now: what was detached meanwhile is not read, nor are the ids of one model by another.
        _, turns, now = rules.reading(
            state_of(request), sae.sae_id, (), None, given.prompt.turns, exclude=body.exclude, model_position=position
        )
        return await read_activations(
            engine, given.token_ids, (), turns, Watch(sae=now, pooling=watch.pooling, exclude=watch.exclude),
            deadline_seconds=seconds, share=principal(request),
        )  # fmt: skip

    with reading(request, (*prompts[0], *prompts[1])):
        found = await side_by_side(request, [partial(one, each) for each in (*prompts[0], *prompts[1])])
    a, b = found[: len(body.positive)], found[len(body.positive) :]
    refuse_bare(a, "positive")
    refuse_bare(b, "negative")
    async with heard(request), context(request).looks.taken():
        features = await asyncio.to_thread(_contrasted, a, b, body)
    labels = await context(request).features.labels(sae.sae_id)
    features = tuple(replace(each, label=labels.get(each.feature)) for each in features)
    tokens = sum(each.excluded.count(False) for each in found)
    excluded = sum(len(each.excluded) for each in found) - tokens
    return answer(request, Contrasted(features=features, sae_id=sae.sae_id, tokens=tokens, excluded=excluded))


def _contrasted(
    a: Sequence[Activations], b: Sequence[Activations], body: ContrastBody
) -> tuple[ContrastedFeature, ...]:
    from ....measuring.contrast import PooledTexts, active_counts, contrast  # noqa: PLC0415 — torch, which a model has loaded

    pools = [[each.pooled for each in some if each.pooled is not None] for some in (a, b)]
    positive, negative = (PooledTexts.of([each.values for each in some]) for some in pools)
    active = active_counts([each.active for some in pools for each in some])
    tokens = sum(each.excluded.count(False) for each in (*a, *b))
    return tuple(contrast(positive, negative, active=active, tokens=tokens, top=body.top, held_out=body.held_out))
