"""OpenAI's request and answer shapes, and what of them is honoured, neutral or refused by name."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from ...domain.chats import Tokenization
from ...domain.events import Sampling
from ...domain.messages import AdmitGeneration
from ...domain.refs import ModelFacts
from ...domain.structs import filled
from ...errors import BadRequestError
from ...ports import Tokenized
from ..requests import MAX_PROMPTS
from .fields import CHAT, COMPLETION
from .messages import ChatMessage, TemplateVariables, check_variables
from .options import SaeExtension, StreamOptions
from .published import Shape
from .sampling import SamplingFields

Stop: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
Prompt: TypeAlias = str | list[int] | list[dict[str, str]]
DEFAULT_COMPLETION_TOKENS = 16
MAX_STOP_TOKENS = 1024
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]


_COMBINED = {
    "max_tokens": "without echo, this value",
    "top_logprobs": "without logprobs, this value",
    "stream_options": "without stream, this value",
    "max_completion_tokens": "with another max_tokens, this value",
    "add_generation_prompt": "with continue_final_message, this value",
    "best_of": "with another n, this value",
}
"""Fields refused because of another field, not for their value."""


class TextBody(SamplingFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What completions and chat have in common."""

    model: Annotated[str, Meta(max_length=4096)] = "default"
    """The model's public name, its id or `default`; with `@` and the name of a preset, under that preset."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=8)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKENS)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    skip_special_tokens: bool | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    add_special_tokens: bool | None = None
    """Special tokens that the tokenizer puts around a text. null: added to a prompt, not to a chat, whose template
    writes its own."""
    prepend_bos: bool | None = None
    """Begin with the BOS token, or do not; null: as the tokenizer, or the template, does."""
    sae: SaeExtension | None = None

    published: ClassVar[Shape]
    """Published fields that are not above."""

    @classmethod
    def settle(cls, value: Any) -> None:
        """As `decoded` calls it."""
        cls.published.settle(value)

    @classmethod
    def described(cls) -> dict[str, dict[str, Any]]:
        """For the API's description, as `Shape.described`."""
        return cls.published.described()

    def refused(self) -> dict[str, bool]:
        """Parameter → whether it was given a value that is not honoured."""
        return {
            "stream_options": self.stream_options not in (None, StreamOptions()) and not self.stream,
        }

    def check(self) -> None:
        """Refuse by name what is not honoured. Raises `BadRequestError`, with `param`."""
        for param, given in self.refused().items():
            if given:
                raise BadRequestError(f"{param}: {_COMBINED.get(param, 'this value')} is not supported", param=param)

    @property
    def scores(self) -> int | None:
        """How many of the most probable tokens to report with each token; None: no log probabilities."""
        raise NotImplementedError

    @property
    def echoes(self) -> bool:
        """The answer begins with the prompt."""
        return False

    @property
    def thoughts(self) -> bool:
        """The answer includes the reasoning next to the content."""
        return True

    def prompts(self) -> list[Prompt]:
        """What is to be continued, each for itself."""
        raise NotImplementedError

    @property
    def tokenization(self) -> Tokenization:
        """How the prompts become tokens."""
        return Tokenization(add_special_tokens=self.add_special_tokens, prepend_bos=self.prepend_bos)

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def counts_usage(self) -> bool:
        """Every chunk of a stream brings the usage so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionBody(TextBody, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    """0, with `echo`: the prompt alone."""
    echo: bool | None = None
    """The text begins with the prompt and, with `logprobs`, the prompt's log probabilities."""
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: int | None = None
    parse_special: bool | None = None
    """False: a prompt that spells a control token does not mean it."""

    published = COMPLETION

    @property
    def tokenization(self) -> Tokenization:
        return replace(super().tokenization, parse_special=self.parse_special is not False)

    def refused(self) -> dict[str, bool]:
        return {
            **super().refused(),
            "best_of": self.best_of not in (None, self.choices),
            "max_tokens": self.max_tokens == 0 and not self.echo,
        }

    @property
    def scores(self) -> int | None:
        return self.logprobs

    @property
    def echoes(self) -> bool:
        return bool(self.echo)

    def prompts(self) -> list[Prompt]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [each for each in self.prompt if isinstance(each, int)]
        if len(ids) == len(self.prompt):
            return [ids]
        if ids:
            raise BadRequestError("prompt: a list must hold texts, token ids, or lists of token ids", param="prompt")
        if len(self.prompt) > MAX_PROMPTS:
            raise BadRequestError(f"prompt: at most {MAX_PROMPTS} in a request", param="prompt")
        return [each for each in self.prompt if not isinstance(each, int)]


class ChatBody(TextBody, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=1024)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include_reasoning: bool | None = None
    reasoning_effort: Annotated[str, Meta(max_length=64)] | None = None
    """A variable of the chat template, for models whose template reads it."""
    chat_template_kwargs: TemplateVariables | None = None
    add_generation_prompt: bool | None = None
    """False: the prompt ends with the last message, and no answer is begun."""
    continue_final_message: bool | None = None
    """The answer continues the content of the last message."""

    published = CHAT

    @property
    def tokenization(self) -> Tokenization:
        return replace(
            super().tokenization,
            chat_template_kwargs=self.chat_template_kwargs or None,
            reasoning_effort=self.reasoning_effort,
            add_generation_prompt=self.add_generation_prompt is not False and not self.continue_final_message,
            continue_final_message=bool(self.continue_final_message),
        )

    def check(self) -> None:
        super().check()
        check_variables(self.chat_template_kwargs or {})

    def refused(self) -> dict[str, bool]:
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        return {
            **super().refused(),
            "top_logprobs": bool(self.top_logprobs) and not self.logprobs,
            "add_generation_prompt": bool(self.add_generation_prompt and self.continue_final_message),
            "max_completion_tokens": both and self.max_tokens != self.max_completion_tokens,
        }

    @property
    def scores(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def thoughts(self) -> bool:
        return self.include_reasoning is not False

    def prompts(self) -> list[Prompt]:
        return [[message.plain() for message in self.messages]]


def sampling(body: TextBody, prompt: Tokenized, model: ModelFacts, usual: int | None = None) -> Sampling:
    """The settings in force; a seed is chosen if none was given. A context overflow is refused. usual: the longest
    answer of a chat that names no limit; None: as long as the context allows."""
    tokens_prompt = len(prompt.token_ids)
    if prompt.reasoning is not None and prompt.reasoning.format == "channels" and body.schema is not None:
        raise BadRequestError(
            "response_format: this model answers in channels, of which none can be given a form; not supported",
            param="response_format",
        )
    room = model.context_length - tokens_prompt
    wanted = body.max_completion_tokens if isinstance(body, ChatBody) and body.max_tokens is None else body.max_tokens
    if room < (1 if wanted is None else wanted):
        raise BadRequestError(
            f"the prompt's {tokens_prompt} tokens and {wanted or 1} more pass the context of {model.context_length}",
            param="max_tokens" if room >= 1 else "prompt",
            tokens_prompt=tokens_prompt,
            context_length=model.context_length,
        )
    cached = model.cache_positions
    if cached is not None and cached - tokens_prompt + 1 < (wanted or 1):
        needed = tokens_prompt + (wanted or 1) - 1
        raise BadRequestError(
            f"the text needs {needed} positions of keys and values, of which it may have {cached}",
            param="max_tokens" if cached >= tokens_prompt else "prompt",
            needed_positions=needed,
            cache_positions=cached,
        )
    fits = room if cached is None else min(room, cached - tokens_prompt + 1)
    default = min(fits, usual or fits) if isinstance(body, ChatBody) else min(fits, DEFAULT_COMPLETION_TOKENS)
    most, fewest = default if wanted is None else wanted, body.min_tokens or 0
    if fewest > most:
        raise BadRequestError(f"min_tokens: {fewest} are more than the {most} there may be", param="min_tokens")
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        max_tokens=most,
        seed=secrets.randbits(31) if body.seed is None else body.seed,
        stop=body.stops,
        stop_in_hidden=bool(body.stops),
        stop_token_ids=_stop_tokens(body, model, fewest),
        include_stop_str_in_output=bool(body.include_stop_str_in_output),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=fewest,
        skip_special_tokens=body.skip_special_tokens is not False,
        **body.processors(model),
    )


def _stop_tokens(body: TextBody, model: ModelFacts, min_tokens: int) -> tuple[int, ...]:
    """Each once, in the order given. `BadRequestError` for an unknown one, or if all tokens would end."""
    tokens = tuple(dict.fromkeys(body.stop_token_ids or ()))
    if model.vocabulary is None:  # the engine knows
        return tokens
    wrong = next((each for each in tokens if each >= model.vocabulary), None)
    if wrong is not None:
        raise BadRequestError(
            f"stop_token_ids: {wrong} is outside the vocabulary of {model.vocabulary}", param="stop_token_ids"
        )
    if min_tokens and len({*tokens, *model.end_ids}) >= model.vocabulary:
        raise BadRequestError("min_tokens: every token ends the generation; none is left to choose", param="min_tokens")
    return tokens


class RequestKey(NamedTuple):
    """What goes on record of a request under an idempotency key."""

    command_id: str
    salt: str
    sha256: str
    """As `GenerationStarted.request_sha256`."""


def admission(
    generation_id: str,
    kind: Literal["completion", "chat"],
    body: TextBody,
    prompt: Tokenized,
    settings: Sampling,
    *,
    model_position: int,
    key: RequestKey | None = None,
) -> AdmitGeneration:
    """`model_position`: of the model that the prompt was read for. `key`: of a request that has an idempotency key."""
    own = body.sae or SaeExtension()
    return filled(
        AdmitGeneration,
        own,
        prompt,
        generation_id=generation_id,
        kind=kind,
        tokens_prompt=len(prompt.token_ids),
        sampling=settings,
        watch=bool(own.top_k_features),
        model_position=model_position,
        request_salt=None if key is None else key.salt,
        request_sha256=None if key is None else key.sha256,
        tokenization=None if body.tokenization == Tokenization() else body.tokenization.recorded,
    )


def fingerprint(model: ModelFacts) -> str:
    """Digest of the environment: same request, seed and fingerprint give the same tokens in float32."""
    return "fp_" + hashlib.sha256(msgspec.json.encode(model.environment, order="sorted")).hexdigest()[:24]
