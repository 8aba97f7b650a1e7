"""The request of `/v1/responses`, and the chat that it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from ....domain.structs import filled
from ....errors import BadRequestError
from ..fields import CHAT
from ..messages import ChatMessage
from ..options import SaeExtension, StreamOptions
from ..published import Inert, Neutral, Shape
from ..requests import ChatBody, Stop

Anything: TypeAlias = Any
TEXTS = ("input_text", "output_text", "text")
_TOOLS = "the model is given no tools"
_SCORES = "log probabilities are reported by /v1/chat/completions"
_CONVERSATION = "nothing is stored; send the whole conversation as input"
_NO_SETTING = Neutral("any", "the model has no setting for it")
_INCLUDED = (
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)
"""They ask for more about items that no answer of ours has, as clients do without being told."""
_AS_IN_CHATS = (
    "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
    "moderation",
)  # fmt: skip
RESPONSES = Shape(
    "ResponsesBody",
    {
        **{name: CHAT.fields[name] for name in _AS_IN_CHATS},
        "max_tool_calls": Inert(int, _TOOLS),
        "background_options": Inert(dict[str, Any], "a response is made while its client waits"),
        "access_programs": Neutral("any", "there is one kind of access"),
        "background": Neutral("boolean", "a response is made while its client waits", (False,)),
        "context_management": Neutral("any", "inputs are read whole or refused"),
        "conversation": Neutral("any", _CONVERSATION),
        "image": Neutral("any", "answers are text"),
        "include": Neutral("array", _SCORES, ignored=_INCLUDED),
        "previous_response_id": Neutral("string", _CONVERSATION),
        "prompt": Neutral("object", "no prompt is stored"),
        "tool_choice": Neutral("any", _TOOLS, ("none", "auto")),
        "tools": Neutral("array", _TOOLS, unless=("tool_choice", "none")),
        "top_logprobs": Neutral("integer", _SCORES, (0,)),
        "truncation": Neutral("string", "inputs are read whole or refused", ("disabled",)),
    },
    {"reasoning": Shape("", dict.fromkeys(("effort", "summary", "generate_summary", "context"), _NO_SETTING))},
)


class InputText(Struct, frozen=True, forbid_unknown_fields=True):
    """Part of a message; what an earlier answer's part says besides its text is passed over."""

    text: str
    type: Literal["input_text", "output_text", "text"] = "input_text"
    annotations: list[Anything] | None = None
    logprobs: list[Anything] | None = None
    prompt_cache_breakpoint: Anything = None


class InputMessage(Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText]
    type: Literal["message"] = "message"
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    def chat(self) -> ChatMessage:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ChatMessage(role="system" if self.role == "developer" else self.role, content=text)


class ResponseStreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_obfuscation: bool | None = None
    """Nothing is added to hide how long a text is."""


class PlainFormat(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text"] = "text"


class TextFormat(Struct, frozen=True, forbid_unknown_fields=True):
    format: PlainFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Struct, frozen=True):
    """Fields of any name pass if they are null."""

    effort: Anything = None
    summary: Anything = None
    generate_summary: Anything = None
    context: Anything = None


class ResponsesBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/responses`."""

    input: str | Annotated[list[InputMessage], Meta(min_length=1, max_length=1024)]
    instructions: str | None = None
    """A system message before all others."""
    model: Annotated[str, Meta(max_length=4096)] = "default"
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=8)] | None = None
    ignore_eos: bool | None = None
    """As vLLM's, which load tools send."""
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextFormat | None = None
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    parallel_tool_calls: bool | None = None
    sae: SaeExtension | None = None

    @classmethod
    def settle(cls, value: Any) -> None:
        """As `decoded` calls it."""
        _refuse_other_than_text(value)
        RESPONSES.settle(value)

    @classmethod
    def described(cls) -> dict[str, dict[str, Any]]:
        """For the API's description, as `Shape.described`."""
        return RESPONSES.described()

    def chat(self) -> ChatBody:
        """The chat that it means."""
        messages = [] if self.instructions is None else [ChatMessage(role="system", content=self.instructions)]
        if isinstance(self.input, str):
            messages.append(ChatMessage(role="user", content=self.input))
        else:
            messages += [message.chat() for message in self.input]
        return filled(
            ChatBody,
            self,
            messages=messages,
            max_completion_tokens=self.max_output_tokens,
            stream_options=StreamOptions(include_usage=True) if self.stream else None,
        )


def _refuse_other_than_text(value: Any) -> None:
    """By name, before the struct calls it unknown. Raises `BadRequestError`."""
    if not isinstance(value, dict):
        return
    wanted = _member(value.get("text"), "format")
    if _member(wanted, "type") in ("json_schema", "json_object"):
        raise BadRequestError(
            f"text.format: {wanted['type']} is not supported here; send response_format to /v1/chat/completions",
            param="text.format",
        )
    for at, item in enumerate(_listed(value.get("input"))):
        kind, where = _member(item, "type"), f"input[{at}].type"
        if kind == "reasoning":
            raise BadRequestError(
                f"{where}: reasoning is not supported: a chat leaves it out, and so may you", param=where
            )
        if kind not in (None, "message"):
            _refuse(kind, where)
        for place, part in enumerate(_listed(_member(item, "content"))):
            if _member(part, "type") not in (None, *TEXTS):
                _refuse(part["type"], f"input[{at}].content[{place}].type")


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _refuse(kind: Any, where: str) -> None:
    raise BadRequestError(f"{where}: {str(kind)[:80]} is not supported: inputs are messages of text", param=where)
