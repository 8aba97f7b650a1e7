"""`/v1`: text under the intervention of the moment, in OpenAI's shapes, streamed or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec.structs import replace

from ...domain.refs import ModelFacts
from ...domain.rules import admission as rules
from ...errors import ModelNotFoundError
from ...generations import Requested, TokenOptions, abandon, ends
from ..answers import answer, state_of
from ..context import context, device, principal
from ..disconnects import on_disconnect
from ..limits import tokens_of
from ..operations import operation
from ..requests import body_of
from ..types import Answer, AnyRequest
from .answers import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk, ListedModel, ModelList
from .idempotency import Made, answered_once, asked_under_key, created_at
from .options import SaeExtension
from .replies import Choice, Kind, Reply
from .requests import ChatBody, CompletionBody, RequestKey, TextBody, admission, fingerprint, sampling
from .sampling import grammar_of
from .stream import ChunkFrames, Frames, streamed

ERRORS = (
    "model_not_loaded", "model_not_found", "not_ready", "draining", "sae_not_attached", "sae_not_found",
    "sae_ambiguous", "feature_out_of_range", "conflicting_edits", "precondition_failed", "mailbox_full",
    "out_of_memory", "read_only", "sae_unsupported", "disk_full", "deadline_exceeded", "positions_unknown",
)  # fmt: skip
KEYED = (*ERRORS, "idempotency_key_reused", "answer_gone")
ANSWERS = ((200, "application/json"), (200, "text/event-stream"))
EXAMPLE: dict[str, Any] = {"model": "default", "prompt": "I love this", "temperature": 0.0, "max_tokens": 12}
_CHAT: dict[str, Any] = {"model": "default", "messages": [{"role": "user", "content": "Tell me about your day."}]}


@operation("GET", "/v1/models", "The loaded model, as OpenAI's clients list it", returns=ModelList, tag="text")
async def list_models(request: AnyRequest) -> Answer:
    model = state_of(request).model
    facts = model.facts if model is not None else None
    return answer(request, ModelList(object="list", data=() if facts is None else (_model(facts),)))


@operation("GET", "/v1/models/{model_id}", "The loaded model, by its id or as `default`", returns=ListedModel,
           errors=("model_not_found",), rest=True, tag="text")  # fmt: skip
async def get_v1_model(request: AnyRequest) -> Answer:
    wanted = request.path_params["model_id"].strip("/")
    model = state_of(request).model
    facts = model.facts if model is not None else None
    if facts is None or wanted not in (facts.model_id.strip("/"), "default"):
        raise ModelNotFoundError(f"the model {wanted[:200]} is not loaded", param="model")
    return answer(request, _model(facts))


def _model(facts: ModelFacts) -> ListedModel:
    return ListedModel(
        id=facts.model_id,
        object="model",
        created=0,
        owned_by="sae-actor",
        root=facts.model_id,
        max_model_len=facts.context_length,
    )


@operation("POST", "/v1/completions",
           "Complete a prompt, or several; each is its own generation. `sae` of the answer belongs to the first one. "
           "With several, each choice has its own `sae` too (streamed: in the choice's last chunk). `sae.features` "
           "are the activations at each position that was run: the prompt's and all generated tokens' except the last "
           "(`features_by_sae` if several SAEs are attached). They are empty at positions that `sae.top_k_exclude` "
           "names, by default attention sinks. `sae.stop_when` is checked at each generated token in the step of the "
           "next one, which is then the last; `sae.finish_reason` is `feature`, `finish_reason` `stop`. Of `n` choices "
           "for each prompt, choice i "
           "has the seed + i and stands at index prompt * n + i; all of a request are admitted, or none. Logits are "
           "changed in this order: `repetition_penalty` (tokens of prompt and answer), `frequency_penalty` and "
           "`presence_penalty` (of the answer), `logit_bias`, `min_tokens`, `response_format`, `temperature`, "
           "`top_k`, `top_p`, `min_p`; `logprobs` are those before all of these. Under a `response_format` a text that "
           "ends with `stop` is the whole JSON, unless a stop string or token cut it; with `length` its beginning",
           body=CompletionBody, answers=ANSWERS, returns=Completion, items=CompletionChunk, errors=KEYED,
           keyed=True,
           examples={"greedy": EXAMPLE, "without intervention": {**EXAMPLE, "sae": {"baseline": True}}},
           tag="text")  # fmt: skip
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
           examples={"streamed": {**_CHAT, "stream": True, "max_tokens": 40}}, tag="text")  # fmt: skip
async def chat_completions(request: AnyRequest) -> Answer:
    body: ChatBody = await body_of(request, ChatBody)
    return await respond(request, body, "chat")


def _shown(request: AnyRequest, made: Made) -> Answer:
    reply, done = made
    return answer(request, reply.whole(done))


async def respond(
    request: AnyRequest,
    body: TextBody,
    kind: Kind,
    shown: Callable[[AnyRequest, Made], Answer] = _shown,
    frames: Frames | None = None,
) -> Answer:
    """The answer to a request: `shown` at its end, or streamed in `frames`."""
    asked = await asked_under_key(request, body, kind)
    if asked is not None:
        begin = partial(opened, body=body, kind=kind)
        return await answered_once(request, asked, lambda each, key: begin(each, key=key), shown)
    reply = await opened(request, body, kind)
    if body.stream:
        return await streamed(request, body, (reply,), frames or ChunkFrames())
    async with on_disconnect(request, partial(abandon, reply.texts)):
        done = await ends(reply.texts)
    return shown(request, (reply, done))


async def opened(request: AnyRequest, body: TextBody, kind: Kind, *, key: RequestKey | None = None) -> Reply:
    """The generations of a request, `n` for each prompt, in order: all are admitted, or none. `key`: of the request's
    idempotency key."""
    engine, texts = device(request), context(request).generations
    model, position = rules.model_to_ask(state_of(request))
    body.check(model)
    prompts = [await tokens_of(request, engine, prompt, body.tokenization) for prompt in body.prompts()]
    settings = [sampling(body, prompt, model) for prompt in prompts]
    grammar = await grammar_of(request, engine, body)
    own_sae = body.sae or SaeExtension()
    asked, of = [], []
    for prompt, own in zip(prompts, settings, strict=True):
        tell = TokenOptions(
            logprobs=body.scores,
            prompt_logprobs=body.scores if body.echoes else None,
            top_k_features=own_sae.top_k_features or 0,
            exclude=own_sae.top_k_exclude,
            prompt=prompt.tokens,
        )
        for i in range(body.choices):
            seeded = replace(own, seed=own.seed + i)
            ask = partial(
                admission, kind=kind, body=body, prompt=prompt, settings=seeded, model_position=position, key=key
            )
            asked.append(Requested(ask, prompt.token_ids, tell, grammar, body.schema))
            of.append(prompt)
    command_id = None if key is None else key.command_id
    opened = await texts.open_all(asked, principal=principal(request), command_id=command_id)
    watched = {sae.sae_id: await context(request).features.labels(sae.sae_id) for sae in opened[0].started.watched}
    choices = tuple(
        Choice(
            kind,
            index,
            text,
            prompt,
            "".join(prompt.tokens) if body.echoes else "",
            scores=body.scores is not None,
            thoughts=body.thoughts,
            labels=watched,
        )
        for index, (text, prompt) in enumerate(zip(opened, of, strict=True))
    )
    created = created_at(opened[0].event)
    return Reply(kind, model.model_id, fingerprint(model), choices, created, body.choices)
