"""`/api/activations`: what an SAE reads in a prompt."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from ...actor import raw_request
from ...domain.chats import Tokenization
from ...domain.messages import OwnIntervention
from ...domain.refs import Exclusions, Feature, SaeId, intervention_sha256
from ...domain.rules.admission import reading
from ...domain.rules.attachments import model_and_position
from ...domain.views.fields import Digest
from ...errors import BadRequestError
from ...generations import read_activations
from ...ports import FeatureActivation, Watch, labelled
from ..answers import answer, state_of
from ..context import context, device
from ..limits import tokens_of
from ..operations import operation
from ..requests import body_of
from ..types import Answer, AnyRequest
from .fields import MESSAGES
from .messages import ChatMessage


class ActivationsBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of `prompt`, `messages`, `token_ids`; `features` in place of the `top_k` largest."""

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=1024)] | None = None
    token_ids: list[int] | None = None
    sae_id: SaeId | None = None
    top_k: Annotated[int, Meta(ge=1, le=1024)] = 5
    features: Annotated[tuple[Feature, ...], Meta(min_length=1, max_length=4096)] | None = None
    exclude: Exclusions = ("sink",)
    """Tokens whose `top_k` lists stay empty."""
    sae: OwnIntervention | None = None
    add_special_tokens: bool | None = None
    """Special tokens that the tokenizer puts around a text. null: added to a prompt, not to a chat, whose template
    writes its own."""
    prepend_bos: bool | None = None
    """Begin with the BOS token, or do not; null: as the tokenizer, or the template, does."""
    parse_special: bool = True
    """False: a prompt that spells a control token does not mean it."""

    @classmethod
    def settle(cls, value: Any) -> None:
        """As `decoded` calls it."""
        MESSAGES.settle(value)

    @property
    def tokenization(self) -> Tokenization:
        return Tokenization(
            add_special_tokens=self.add_special_tokens,
            prepend_bos=self.prepend_bos,
            parse_special=self.parse_special,
        )

    def asked(self) -> str | list[int] | list[dict[str, str]]:
        """The one prompt."""
        messages = None if self.messages is None else [message.plain() for message in self.messages]
        given = [each for each in (self.prompt, messages, self.token_ids) if each is not None]
        if len(given) != 1:
            raise BadRequestError("give exactly one of prompt, messages, token_ids", param="prompt")
        return given[0]


class ReadActivations(Struct, frozen=True, kw_only=True):
    """What an SAE reads at each token of a prompt."""

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    is_special: tuple[bool, ...]
    is_sink: tuple[bool, ...]
    features: tuple[tuple[FeatureActivation, ...], ...]
    sae_id: str
    intervention_sha256: Digest


ERRORS = (
    "model_not_loaded", "not_ready", "sae_not_attached", "sae_not_found", "sae_ambiguous", "feature_out_of_range",
    "conflicting_edits", "mailbox_full", "out_of_memory", "read_only", "sae_unsupported", "deadline_exceeded",
    "positions_unknown",
)  # fmt: skip


@operation("POST", "/api/activations",
           "Activations of an SAE at each token of a prompt, before the SAE's own edits. These are the `top_k` largest "
           "without zeros, empty at tokens that `exclude` names; or those of `features`, in their order, at every "
           "token. `is_sink` marks attention sinks: the first token, and tokens whose norm at the hook point is above "
           "5 times the median of the prompt's first 512. The prompt runs without an intervention unless `sae` gives "
           "one; the log records nothing of it",
           body=ActivationsBody, returns=ReadActivations, errors=ERRORS,
           examples={"largest": {"prompt": "I love this book", "top_k": 3}}, tag="text")  # fmt: skip
async def post_activations(request: AnyRequest) -> Answer:
    body: ActivationsBody = await body_of(request, ActivationsBody)
    asked = body.asked()
    engine = device(request)
    state = state_of(request)
    reading(state, body.sae_id, body.features or (), None)  # refuses before the prompt is read
    position = model_and_position(state)[1]
    prompt = await tokens_of(request, engine, asked, body.tokenization)
    own = None if body.sae is None else await raw_request(body.sae, state, engine)
    # The state of now: what was detached meanwhile is not read, nor are the ids of one model by another.
    state = state_of(request)
    intervention, turns, sae = reading(
        state, body.sae_id, body.features or (), own, prompt.turns, exclude=body.exclude, model_position=position
    )
    top_k = None if body.features is not None else body.top_k
    watch = Watch(sae=sae, top_k=top_k, features=body.features, exclude=body.exclude)
    seconds = context(request).generations.deadline_seconds
    found = await read_activations(engine, prompt.token_ids, intervention, turns, watch, deadline_seconds=seconds)
    labels = await context(request).features.labels(sae.sae_id)
    view = ReadActivations(
        tokens=prompt.tokens,
        token_ids=prompt.token_ids,
        is_special=prompt.special,
        is_sink=found.sinks,
        features=tuple(labelled(row, labels) for row in found.rows),
        sae_id=sae.sae_id,
        intervention_sha256=intervention_sha256(intervention),
    )
    return answer(request, view)
