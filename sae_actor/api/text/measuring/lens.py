"""`/api/lens`: what the residual stream says of the next token, layer by layer."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from ....actor import raw_request
from ....domain.messages import OwnIntervention
from ....domain.refs import intervention_sha256
from ....domain.rules.admission import model_to_ask, reading_under
from ....domain.views.fields import Digest
from ....errors import BadRequestError, LayerOutOfRangeError, SAEIncompatibleError
from ....generations import read_prompt
from ....ports import TokenScore, Watch
from ...answers import state_of
from ...answers.lists import LongLists
from ...context import check_intervention, context, device, principal
from ...disconnects import heard
from ...limits import tokens_of
from ...operations import operation
from ...requests import body_of
from ...types import Answer, AnyRequest
from ..fields import MESSAGES
from .inputs import OnePrompt, ReadInput, TokenizedBody
from .texts import reading

MOST_ROWS = 2**14
"""Positions times layers: each is a pass through the unembedding."""

Layer = Annotated[int, Meta(ge=0, le=4095)]


class LensBody(OnePrompt, TokenizedBody, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of `prompt`, `messages`, `token_ids`."""

    layers: Annotated[tuple[Layer, ...], Meta(min_length=1, max_length=4096)] | None = None
    """null: every one."""
    top: Annotated[int, Meta(ge=1, le=100)] = 5
    """So many tokens at each position."""
    sae: OwnIntervention | None = None
    """An intervention; null: none."""
    add_special_tokens: bool | None = None
    """As of `/api/activations`."""
    prepend_bos: bool | None = None
    parse_special: bool = True

    @classmethod
    def settle(cls, value: Any) -> None:
        """As `decoded` calls it."""
        MESSAGES.settle(value)


class LensLayer(Struct, frozen=True):
    """The residual stream after one block, and after the edits there."""

    layer: int
    positions: tuple[tuple[TokenScore, ...], ...]
    """At each token of the prompt the most probable next ones, best first."""


class ThroughLens(Struct, frozen=True, kw_only=True):
    """What each layer says of the next token."""

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    layers: tuple[LensLayer, ...]
    intervention_sha256: Digest


@operation("POST", "/api/lens",
           "The logit lens: what the model would say next if the residual stream after a block were that after its "
           "last: softmax(W_U norm(h)), with the model's own final norm and whatever it does to its logits. After the "
           "last block it is the model's own distribution. The log records nothing of it",
           body=LensBody, returns=ThroughLens, users=True, tag="text",
           errors=("model_not_loaded", "not_ready", "sae_not_attached", "sae_not_found", "sae_ambiguous",
                   "sae_incompatible", "feature_out_of_range", "conflicting_edits", "layer_out_of_range",
                   "mailbox_full", "out_of_memory", "read_only", "sae_unsupported", "deadline_exceeded",
                   "positions_unknown", "model_not_found", "quota_exceeded"),
           examples={"some layers": {"prompt": "The capital of France is", "layers": [10, 29], "top": 3}})  # fmt: skip
async def post_lens(request: AnyRequest) -> Answer:
    body: LensBody = await body_of(request, LensBody)
    check_intervention(request, body.sae or OwnIntervention(), usual_is_none=True)
    engine, state = device(request), state_of(request)
    model, position = model_to_ask(state)
    layers = tuple(range(model.num_layers)) if body.layers is None else body.layers
    if len(set(layers)) < len(layers):
        raise BadRequestError("layers: each at most once", param="layers")
    if (worst := max(layers)) >= model.num_layers:
        raise LayerOutOfRangeError(
            f"the model has layers 0 to {model.num_layers - 1}, not {worst}", num_layers=model.num_layers
        )
    if (reason := model.without.get("resid_post")) is not None:
        raise SAEIncompatibleError(f"models of type {model.model_type} have no hook point resid_post ({reason})")
    prompt = await tokens_of(request, engine, body.asked(), body.tokenization)
    positions = len(prompt.token_ids)
    if positions * len(layers) > MOST_ROWS:
        raise BadRequestError(
            f"{positions} tokens × {len(layers)} layers are {positions * len(layers)} passes through the unembedding; "
            f"at most {MOST_ROWS} are made for a request: name fewer layers",
            param="layers",
        )
    own = None if body.sae is None else await raw_request(body.sae, state, engine)
    # The state of now: the ids of one model are not read by another.
    intervention, turns = reading_under(state_of(request), own, prompt.turns, model_position=position)
    lists = LongLists()
    async with heard(request):
        with reading(request, [ReadInput(prompt=prompt)]):
            found = await read_prompt(
                engine,
                prompt.token_ids,
                intervention,
                turns,
                tuple(Watch.lens_at(layer, body.top) for layer in layers),
                deadline_seconds=context(request).generations.deadline_seconds,
                share=principal(request),
            )
        told = [LensLayer(layer, await lists.add(list(each.lens))) for layer, each in zip(layers, found, strict=True)]
    view = ThroughLens(
        tokens=prompt.tokens,
        token_ids=prompt.token_ids,
        layers=tuple(told),
        intervention_sha256=intervention_sha256(intervention),
    )
    return lists.answer(request, view)
