"""`/tokenize`, `/detokenize`, `/tokenizer_info`: the model's tokenizer, as clients of vLLM ask for it."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from ...domain.chats import Tokenization
from ...domain.refs import ModelFacts
from ...domain.rules.admission import model_to_ask
from ...domain.views.fields import Count
from ...errors import BadRequestError
from ...ports import TokenizerInfo
from ..answers import answer, state_of
from ..context import context, device
from ..disconnects import heard
from ..limits import tokens_of
from ..names import preset_named
from ..operations import operation
from ..requests import body_of
from ..types import Answer, AnyRequest
from .fields import MESSAGES
from .messages import ChatMessage, TemplateVariables, check_variables

TokenIds = Annotated[list[Annotated[int, Meta(ge=0, le=2**31 - 1)]], Meta(max_length=2**20)]


class TokenizeBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`prompt`, or `messages` with what belongs to a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=1024)] | None = None
    add_special_tokens: bool | None = None
    """null: true for a prompt, false for a chat, whose template writes its own."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateVariables | None = None
    return_token_strs: bool | None = None
    """Report the text of each token too."""

    @classmethod
    def settle(cls, value: Any) -> None:
        """As `decoded` calls it."""
        MESSAGES.settle(value)

    def asked(self) -> str | list[dict[str, str]]:
        if (self.prompt is None) == (self.messages is None):
            raise BadRequestError("give exactly one of prompt, messages", param="prompt")
        if self.prompt is not None:
            return self.prompt
        return [message.plain() for message in self.messages or ()]

    @property
    def tokenization(self) -> Tokenization:
        if self.add_generation_prompt and self.continue_final_message:
            message = "add_generation_prompt: with continue_final_message, this value is not supported"
            raise BadRequestError(message, param="add_generation_prompt")
        check_variables(self.chat_template_kwargs or {})
        return Tokenization(
            add_special_tokens=self.add_special_tokens,
            chat_template_kwargs=self.chat_template_kwargs or None,
            add_generation_prompt=self.add_generation_prompt is not False and not self.continue_final_message,
            continue_final_message=bool(self.continue_final_message),
        )


class TokenizeAnswer(Struct, frozen=True, kw_only=True):
    tokens: tuple[int, ...]
    count: Count
    max_model_len: Count
    """Tokens of the model's context."""
    token_strs: tuple[str, ...] | None = None
    """Joined they are the prompt. null if not asked for, or if there are more than the context holds."""


class DetokenizeBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    model: str | None = None
    tokens: TokenIds


class DetokenizeAnswer(Struct, frozen=True, kw_only=True):
    prompt: str


ERRORS = ("model_not_loaded", "model_not_found", "not_ready", "draining", "mailbox_full", "read_only")


@operation("POST", "/tokenize",
           "The token ids of a text, or of a chat as the model reads it, also of one that is too long to be run",
           body=TokenizeBody, returns=TokenizeAnswer, errors=ERRORS, reads=True,
           examples={"a text": {"prompt": "I love this book"},
                     "a chat": {"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": True}},
           users=True, tag="text")  # fmt: skip
async def post_tokenize(request: AnyRequest) -> Answer:
    body: TokenizeBody = await body_of(request, TokenizeBody)
    model = _model(request, body.model)
    read = await tokens_of(request, device(request), body.asked(), body.tokenization, any_length=True)
    strings = read.tokens if body.return_token_strs and len(read.tokens) == len(read.token_ids) else None
    count = len(read.token_ids)
    return answer(
        request,
        TokenizeAnswer(tokens=read.token_ids, count=count, max_model_len=model.context_length, token_strs=strings),
    )


@operation("POST", "/detokenize", "The text of token ids, special tokens as they are written",
           body=DetokenizeBody, returns=DetokenizeAnswer, errors=ERRORS, reads=True,
           examples={"some": {"tokens": [40, 2462, 451]}}, users=True, tag="text")  # fmt: skip
async def post_detokenize(request: AnyRequest) -> Answer:
    body: DetokenizeBody = await body_of(request, DetokenizeBody)
    _model(request, body.model)
    engine = device(request)
    async with heard(request), context(request).prompts.taken():
        return answer(request, DetokenizeAnswer(prompt=await engine.detokenize(body.tokens)))


@operation("GET", "/tokenizer_info", "The model's tokenizer: its special tokens and its chat template",
           returns=TokenizerInfo, errors=ERRORS, users=True, tag="text")  # fmt: skip
async def get_tokenizer_info(request: AnyRequest) -> Answer:
    model_to_ask(state_of(request))
    return answer(request, await device(request).tokenizer_info())


def _model(request: AnyRequest, named: str | None) -> ModelFacts:
    model, _ = model_to_ask(state_of(request))
    if named:
        preset_named(request, model, named)
    return model
