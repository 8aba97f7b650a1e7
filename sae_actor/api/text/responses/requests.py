"""The request of `/v1/responses`, and the chat that it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, MsgspecError, Struct

from ....errors import BadRequestError
from ..messages import ChatMessage
from ..options import SaeExtension
from ..requests import ChatBody

Anything: TypeAlias = Any
TEXTS = ("input_text", "output_text", "text")
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "access_programs": (),
    "background": (False,),
    "context_management": (),
    "conversation": (),
    "image": (),
    "include": (),
    "moderation": (),
    "previous_response_id": (),
    "prompt": (),
    "tool_choice": ("none", "auto"),
    "tools": (),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
"""Published fields of what we lack → values that ask for nothing, besides null and what is empty."""
INCLUDED = (
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)
"""Values of `include` that ask for more about items that no answer of ours has, as clients do without being told."""
WHY = {
    "previous_response_id": "no response is stored; send the whole conversation as input",
    "conversation": "no conversation is stored; send it as input",
    "background": "a response is made while its client waits",
    "tools": "the model is given no tools",
    "tool_choice": "the model is given no tools",
    "top_logprobs": "log probabilities are reported by /v1/chat/completions",
    "include": "log probabilities are reported by /v1/chat/completions",
    "truncation": "inputs are read whole or refused",
}


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
    """`POST /v1/responses`. Fields that are not described take null, empty and neutral values alone."""

    input: str | Annotated[list[InputMessage], Meta(min_length=1, max_length=1024)]
    instructions: str | None = None
    """A system message before all others."""
    model: Annotated[str, Meta(max_length=4096)] = "default"
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextFormat | None = None
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    store: bool | None = None
    """No text is stored but as `[audit] record_text` says."""
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    background_options: dict[str, Any] | None = None
    sae: SaeExtension | None = None
    access_programs: Anything = None
    background: Anything = None
    context_management: Anything = None
    conversation: Anything = None
    image: Anything = None
    include: Anything = None
    moderation: Anything = None
    previous_response_id: Anything = None
    prompt: Anything = None
    tool_choice: Anything = None
    tools: Anything = None
    top_logprobs: Anything = None
    truncation: Anything = None

    def check(self) -> None:
        """Raises `BadRequestError`, with `param`, for what is asked for and not supported."""
        for param, values in NEUTRAL.items():
            value = getattr(self, param)
            if param == "tools" and self.tool_choice == "none":
                continue
            if param == "include" and isinstance(value, list):
                value = [each for each in value if each not in INCLUDED]
            if not (value in (None, "", [], {}) or any(type(value) is type(each) and value == each for each in values)):
                why = f": {WHY[param]}" if param in WHY else ""
                raise BadRequestError(f"{param}: this value is not supported{why}", param=param)
        for name in ReasoningOptions.__struct_fields__:
            if self.reasoning is not None and getattr(self.reasoning, name) is not None:
                raise BadRequestError(f"reasoning.{name}: the model has no setting for it", param=f"reasoning.{name}")

    def chat(self) -> ChatBody:
        """The chat that it means."""
        messages = [] if self.instructions is None else [ChatMessage(role="system", content=self.instructions)]
        if isinstance(self.input, str):
            messages.append(ChatMessage(role="user", content=self.input))
        else:
            messages += [message.chat() for message in self.input]
        return ChatBody(
            messages=messages,
            model=self.model,
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stream=self.stream,
            sae=self.sae,
        )


class _Typed(Struct):
    """What an item or a part of the input says it is."""

    type: Any = None
    content: Any = None


class _Input(Struct):
    input: str | list[_Typed] = ""
    text: Any = None


def check_kinds(raw: bytes) -> None:
    """Refuse by name what is not text, before the strict reading calls it unknown. Raises `BadRequestError`."""
    try:
        found = msgspec.json.decode(raw, type=_Input)
    except (MsgspecError, ValueError, RecursionError):
        return  # the strict reading raises the right error
    wanted = found.text.get("format") if isinstance(found.text, dict) else None
    if isinstance(wanted, dict) and wanted.get("type") in ("json_schema", "json_object"):
        raise BadRequestError(
            f"text.format: {wanted['type']} is not supported here; send response_format to /v1/chat/completions",
            param="text.format",
        )
    for at, item in enumerate(found.input if isinstance(found.input, list) else ()):
        if item.type == "reasoning":
            where = f"input[{at}].type"
            raise BadRequestError(
                f"{where}: reasoning is not supported: a chat leaves it out, and so may you", param=where
            )
        if item.type not in (None, "message"):
            _refuse(item.type, f"input[{at}].type")
        for place, part in enumerate(item.content if isinstance(item.content, list) else ()):
            if isinstance(part, dict) and part.get("type") not in (None, *TEXTS):
                _refuse(part["type"], f"input[{at}].content[{place}].type")


def _refuse(kind: Any, where: str) -> None:
    raise BadRequestError(f"{where}: {str(kind)[:80]} is not supported: inputs are messages of text", param=where)
