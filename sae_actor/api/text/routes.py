"""`/v1`: text under the intervention of the moment, in OpenAI's shapes, streamed or not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ...domain.refs import ModelFacts
from ...domain.rules import admission as rules
from ...domain.state import Preset
from ...errors import BadRequestError, ModelNotFoundError
from ...generations import Hold, Requested, TokenOptions, abandon, ends
from ..answers import answer, state_of
from ..context import check_intervention, context, device, principal
from ..disconnects import on_disconnect
from ..limits import tokens_of
from ..names import preset_named, public_name, root_of, shown_name
from ..operations import operation
from ..requests import body_of
from ..types import Answer, AnyRequest
from .answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    ListedModel,
    ListedPreset,
    ModelList,
)
from .idempotency import Finish, Made, answered_once, asked_under_key, created_at, recorded
from .measuring.detailed import detailed, labels_of
from .measuring.targets import token_ids_of
from .options import SaeExtension, refuse_much
from .replies import Choice, Kind, Reply
from .requests import ChatBody, CompletionBody, RequestKey, TextBody, admission, fingerprint, sampling
from .sampling import grammar_of
from .stream import ChunkFrames, Frames, made_answer, streamed

ERRORS = (
    "model_not_loaded", "model_not_found", "not_ready", "draining", "sae_not_attached", "sae_not_found",
    "sae_ambiguous", "feature_out_of_range", "conflicting_edits", "precondition_failed", "mailbox_full",
    "out_of_memory", "read_only", "sae_unsupported", "sae_incompatible", "disk_full", "deadline_exceeded",
    "positions_unknown", "quota_exceeded",
)  # fmt: skip
KEYED = (*ERRORS, "idempotency_key_reused", "answer_gone")
ANSWERS = ((200, "application/json"), (200, "text/event-stream"))
EXAMPLE: dict[str, Any] = {"model": "default", "prompt": "I love this", "temperature": 0.0, "max_tokens": 12}
_CHAT: dict[str, Any] = {"model": "default", "messages": [{"role": "user", "content": "Tell me about your day."}]}


@operation("GET", "/v1/models", "The loaded model, and the same under each preset, as OpenAI's clients list them",
           returns=ModelList, users=True, tag="text")  # fmt: skip
async def list_models(request: AnyRequest) -> Answer:
    state = state_of(request)
    facts = state.model.facts if state.model is not None else None
    presets = (state.presets[name] for name in sorted(state.presets))
    listed = () if facts is None else (_model(request, facts), *(_model(request, facts, each) for each in presets))
    return answer(request, ModelList(object="list", data=listed))


@operation("GET", "/v1/models/{model_id}",
           "The loaded model, by its public name, its id or as `default`; with `@` and a preset under that",
           returns=ListedModel,
           errors=("model_not_found",), rest=True, users=True, tag="text")  # fmt: skip
async def get_v1_model(request: AnyRequest) -> Answer:
    wanted = request.path_params["model_id"].strip("/")
    state = state_of(request)
    facts = state.model.facts if state.model is not None else None
    if facts is None:
        raise ModelNotFoundError(f"the model {wanted[:200]} is not loaded", param="model")
    preset = preset_named(request, facts, wanted)
    return answer(request, _model(request, facts, None if preset is None else state.presets[preset]))


def _model(request: AnyRequest, facts: ModelFacts, preset: Preset | None = None) -> ListedModel:
    listed = ListedModel(
        id=public_name(request, facts.model_id),
        object="model",
        created=0,
        owned_by="sae-actor",
        root=root_of(request, facts),
        max_model_len=facts.context_length,
    )
    if preset is None:
        return listed
    state = state_of(request)
    gone, others = preset.missing(state), preset.incompatible(state)
    return replace(
        listed,
        id=f"{listed.id}@{preset.name}",
        created=int(datetime.fromisoformat(preset.saved_at).timestamp()),
        description=preset.description,
        sae=ListedPreset(usable=not gone and not others, missing=gone, incompatible=others),
    )


B = TypeVar("B", bound=TextBody)


def named(request: AnyRequest, body: B, facts: ModelFacts) -> B:
    """The body with the model's public name, and the preset of its `model` in `sae`. Raises `ModelNotFoundError`,
    `BadRequestError` if `sae` has an intervention of its own."""
    preset = preset_named(request, facts, body.model)
    body = replace(body, model=public_name(request, facts.model_id))
    if preset is None:
        return body
    own = body.sae or SaeExtension()
    if own.baseline or any(each is not None for each in (own.steering, own.interventions, own.preset)):
        raise BadRequestError(
            f"the model's name asks for the preset {preset}: leave sae.baseline, sae.steering, sae.interventions and "
            "sae.preset out",
            param="sae",
        )
    return replace(body, sae=replace(own, preset=preset))


@operation("POST", "/v1/completions",
           "Complete a prompt, or several; each is its own generation. `sae` of the answer belongs to the first one. "
           "With several, each choice has its own `sae` too (streamed: in the choice's last chunk). `sae.features` "
           "are the activations at each position that was run: the prompt's and all generated tokens' except the last "
           "(`features_by_sae` if several SAEs are attached). They are empty at positions that `sae.top_k_exclude` "
           "names, by default attention sinks. With `sae.details` the answer has `sae.positions`, an entry for each of "
           "these positions: the edits that held, the norm of the difference that was written relative to that of the "
           "activation, and features before and after, from the same pass. The features are those that edits, "
           "conditions, `stop_when` and `sae.details_of` name, and those of each Monitor that names at most 64. "
           "Streamed, each chunk has the positions that were run for its token: the first the prompt's, each later "
           "one that of the token before. `sae.stop_when` is checked at each generated token in the step of the "
           "next one, which is then the last; `sae.finish_reason` is `feature`, `finish_reason` `stop`. Of `n` choices "
           "for each prompt, choice i "
           "has the seed + i and stands at index prompt * n + i; all of a request are admitted, or none. Logits are "
           "changed in this order: `repetition_penalty` (tokens of prompt and answer), `frequency_penalty` and "
           "`presence_penalty` (of the answer), `logit_bias`, `min_tokens`, `response_format`, `temperature`, "
           "`top_k`, `top_p`, `min_p`; `logprobs` and `sae.logprobs_of` are of those before "
           "all of these. Under a `response_format` a text that "
           "ends with `stop` is the whole JSON, unless a stop string or token cut it; with `length` its beginning",
           body=CompletionBody, answers=ANSWERS, returns=Completion, items=CompletionChunk, errors=KEYED,
           keyed=True,
           examples={"greedy": EXAMPLE, "without intervention": {**EXAMPLE, "sae": {"baseline": True}}},
           users=True, tag="text")  # fmt: skip
async def completions(request: AnyRequest) -> Answer:
    body: CompletionBody = await body_of(request, CompletionBody)
    return await respond(request, body, "completion")


@operation("POST", "/v1/chat/completions",
           "Answer a chat. If the model's template marks reasoning (the channels of gpt-oss, `<think>` blocks), it is "
           "in `reasoning_content` of the message and of the deltas, separate from `content`; "
           "`include_reasoning: false` leaves it out. `logprobs`, `sae.features` and `usage` cover all tokens, and "
           "`stop` is searched in both",
           body=ChatBody, answers=ANSWERS, returns=ChatCompletion, items=ChatCompletionChunk, errors=KEYED,
           keyed=True,
           examples={"streamed": {**_CHAT, "stream": True, "max_tokens": 40}}, users=True, tag="text")  # fmt: skip
async def chat_completions(request: AnyRequest) -> Answer:
    body: ChatBody = await body_of(request, ChatBody)
    return await respond(request, body, "chat")


Shown = Callable[[Sequence[Made]], Struct]
Opened = Callable[[AnyRequest, RequestKey | None], Awaitable[Sequence[Reply]]]


def _shown(made: Sequence[Made]) -> Struct:
    ((reply, done),) = made
    return reply.whole(done)


async def respond(
    request: AnyRequest, body: TextBody, kind: Kind, shown: Shown = _shown, frames: Frames | None = None
) -> Answer:
    """The answer to a request: `shown` at its end, or streamed in `frames`."""

    async def begin(request: AnyRequest, key: RequestKey | None) -> Sequence[Reply]:
        return (await opened(request, body, kind, key=key),)

    return await respond_beside(request, (body,), kind, begin, shown=shown, frames=frames or ChunkFrames())


async def respond_beside(
    request: AnyRequest, bodies: Sequence[TextBody], kind: Kind, begin: Opened, *, shown: Shown, frames: Frames
) -> Answer:
    """The answer to what is asked beside each other, as `respond`. `begin`: the replies to the bodies, in order."""
    body = bodies[0]
    asked = await asked_under_key(request, streams=bool(body.stream))
    if asked is not None:

        async def begun(unheard: AnyRequest) -> Finish:
            found = await recorded(unheard, asked, bodies, kind)
            replies = await begin(unheard, asked.key()) if found is None else ()

            async def finish() -> Answer:
                made = await _made(replies) if found is None else found
                return await made_answer(unheard, partial(shown, made), [reply for reply, _ in made], whole=True)

            return finish

        return await answered_once(request, asked, begun)
    replies = await begin(request, None)
    if body.stream:
        return await streamed(request, body, replies, frames)
    async with on_disconnect(request, partial(abandon, [text for reply in replies for text in reply.texts])):
        made = await _made(replies)
    return await made_answer(request, partial(shown, made), replies)


async def _made(replies: Sequence[Reply]) -> list[Made]:
    """Each with the ends of its texts."""
    done = iter(await ends([text for reply in replies for text in reply.texts]))
    return [(reply, [*islice(done, len(reply.texts))]) for reply in replies]


async def opened(
    request: AnyRequest,
    body: TextBody,
    kind: Kind,
    *,
    key: RequestKey | None = None,
    held: Sequence[Hold] = (),
    spare: list[Hold] | None = None,
) -> Reply:
    """The generations of a request, `n` for each prompt, in order: all are admitted, or none. `key`: of the request's
    idempotency key. held: what they need of the caller's quota, held already. spare: gets as much again, for a request
    that belongs to this one: both fit, or neither is begun."""
    engine, texts = device(request), context(request).generations
    model, position = rules.model_to_ask(state_of(request))
    body.check()
    body = named(request, body, model)
    check_intervention(request, body.sae or SaeExtension())
    prompts = [await tokens_of(request, engine, prompt, body.tokenization) for prompt in body.prompts()]
    of = [prompt for prompt in prompts for _ in range(body.choices)]
    beside = 1 if spare is None and not held else 2
    usual = texts.quotas.usual_new(principal(request), [len(each.token_ids) for each in of] * beside)
    settings = [sampling(body, prompt, model, usual) for prompt in prompts]
    grammar = await grammar_of(request, engine, body)
    own_sae = body.sae or SaeExtension()
    watched = await token_ids_of(request, own_sae.logprobs_of or (), "sae.logprobs_of")
    features = detailed(request, own_sae)
    lengths = [(len(p.token_ids), own.max_tokens) for p, own in zip(prompts, settings, strict=True)] * body.choices
    refuse_much(own_sae, lengths, scores=body.scores, echoes=body.echoes, attached=state_of(request).attached)
    asked = []
    for prompt, own in zip(prompts, settings, strict=True):
        tell = TokenOptions(
            logprobs=body.scores,
            prompt_logprobs=body.scores if body.echoes else None,
            top_k_features=own_sae.top_k_features or 0,
            exclude=own_sae.top_k_exclude,
            logprobs_of=watched,
            detailed=features,
            prompt=prompt.tokens,
        )
        for i in range(body.choices):
            seeded = replace(own, seed=own.seed + i)
            ask = partial(
                admission, kind=kind, body=body, prompt=prompt, settings=seeded, model_position=position, key=key
            )
            asked.append(Requested(ask, prompt.token_ids, tell, grammar, body.schema, most=own.max_tokens))
    if not held:
        held = texts.hold(*([asked] if spare is None else [asked, asked]), principal=principal(request))
    if spare is not None:
        spare += held[len(asked) :]
    command_id = None if key is None else key.command_id
    opened = await texts.open_all(asked, principal=principal(request), command_id=command_id, held=held[: len(asked)])
    shown_saes = [sae.sae_id for sae in opened[0].started.watched]
    try:
        labels = {} if features is None and not shown_saes else await labels_of(request, shown_saes)
    except BaseException:
        abandon(opened)  # nobody has them yet who could
        raise
    choices = tuple(
        Choice(
            kind,
            index,
            text,
            prompt,
            "".join(prompt.tokens) if body.echoes else "",
            scores=body.scores is not None,
            thoughts=body.thoughts,
            names=bool(watched),
            details=features is not None,
            labels=labels,
        )
        for index, (text, prompt) in enumerate(zip(opened, of, strict=True))
    )
    created = created_at(opened[0].event)
    shown = shown_name(request, model, opened[0].started)
    return Reply(kind, shown, fingerprint(model), choices, created, body.choices)
