"""`inputs` of a request: texts, chats or token ids, and what they come to as tokens.

A body that holds some has `settle` call `INPUTS.settle`, and reads them with `read_inputs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from ....domain.chats import Tokenization
from ....errors import BadRequestError
from ....ports import Tokenized
from ...context import context, device
from ...disconnects import heard
from ...types import AnyRequest
from ..fields import MESSAGES
from ..messages import ChatMessage
from ..published import Shape

MOST_INPUTS = 1024
INPUTS = Shape("", {}, {"inputs": MESSAGES})
"""Of a body that has `inputs`: their messages are those of OpenAI."""

TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenIds: TypeAlias = Annotated[list[TokenId], Meta(min_length=1, max_length=2**20)]
InputId: TypeAlias = Annotated[str, Meta(max_length=128)]
Prompt: TypeAlias = str | list[int] | list[dict[str, str]]


class TokenizedBody:
    """Of a body that says how its texts become tokens. Fields are the body's own: structs with fields do not mix."""

    __slots__ = ()
    add_special_tokens: bool | None
    prepend_bos: bool | None
    parse_special: bool

    @property
    def tokenization(self) -> Tokenization:
        return Tokenization(
            add_special_tokens=self.add_special_tokens,
            prepend_bos=self.prepend_bos,
            parse_special=self.parse_special,
        )


class OnePrompt(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of `prompt`, `messages`, `token_ids`."""

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=1024)] | None = None
    token_ids: TokenIds | None = None

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.prompt, self.messages, self.token_ids)) != 1:
            raise ValueError("give exactly one of prompt, messages, token_ids")

    def asked(self) -> Prompt:
        """The one prompt, as an engine takes it."""
        if self.messages is not None:
            return [message.plain() for message in self.messages]
        return self.prompt if self.prompt is not None else self.token_ids or []


class Input(OnePrompt, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of `prompt`, `messages`, `token_ids`, of several inputs."""

    id: Annotated[InputId | None, Meta(description="given back with the results")] = None


class ContinuedInput(Input, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of `prompt`, `messages`, `token_ids`, and what follows it."""

    continuation: str | TokenIds | None = None
    """Tokens after the prompt; a text is tokenized by itself, without special tokens."""


class ReadInput(Struct, frozen=True, kw_only=True):
    """An input as the model sees it."""

    prompt: Tokenized
    continuation: Tokenized | None = None

    @property
    def continuation_ids(self) -> tuple[int, ...]:
        return () if self.continuation is None else self.continuation.token_ids

    @property
    def token_ids(self) -> tuple[int, ...]:
        return (*self.prompt.token_ids, *self.continuation_ids)

    @property
    def tokens(self) -> tuple[str, ...]:
        return (*self.prompt.tokens, *(() if self.continuation is None else self.continuation.tokens))


async def read_inputs(
    request: AnyRequest, inputs: Sequence[Input], how: Tokenization | None = None, *, name: str = "inputs"
) -> list[ReadInput]:
    """The inputs as the model sees them, in order; what fails names its input by `name` and index.

    Raises the engine's errors, and `MailboxFullError` if too many prompts are waiting.
    """
    found = []
    async with heard(request):
        for at, each in enumerate(inputs):
            try:
                found.append(await _read(request, each, how))
            except BadRequestError as error:
                raise BadRequestError(f"{name}[{at}]: {error.detail}", param=f"{name}[{at}]") from None
    return found


async def _read(request: AnyRequest, given: Input, how: Tokenization | None) -> ReadInput:
    engine, queue = device(request), context(request).prompts
    async with queue.taken():
        prompt = await engine.tokenize(given.asked(), how)
    further = given.continuation if isinstance(given, ContinuedInput) else None
    if further is None:
        return ReadInput(prompt=prompt)
    if further == "":
        raise BadRequestError("the continuation is empty")
    plain = Tokenization(add_special_tokens=False, parse_special=how is None or how.parse_special)
    async with queue.taken():
        return ReadInput(
            prompt=prompt, continuation=await engine.tokenize(further, plain if isinstance(further, str) else None)
        )
