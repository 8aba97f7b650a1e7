"""OpenAI's response object, from the answer to a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from ....domain.views.fields import Count
from ..answers import AppliedIntervention, ChatCompletion, Usage
from .requests import PlainFormat, ReasoningOptions, ResponsesBody, TextFormat

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(Struct, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    text: str
    annotations: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()


class ReasoningText(Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning_text"):
    text: str


class OutputMessage(Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    id: str
    status: Status
    role: Literal["assistant"] = "assistant"
    content: tuple[OutputText, ...]


class OutputReasoning(Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """The reasoning, if the model's chats mark it."""

    id: str
    status: Status
    summary: tuple[str, ...] = ()
    content: tuple[ReasoningText, ...]


OutputKind = Literal["content", "reasoning"]
OutputItem: TypeAlias = OutputMessage | OutputReasoning
OutputPart: TypeAlias = OutputText | ReasoningText


class InputTokensDetails(Struct, frozen=True, kw_only=True):
    cached_tokens: Count = 0
    cache_write_tokens: Count = 0


class OutputTokensDetails(Struct, frozen=True, kw_only=True):
    reasoning_tokens: Count


class ResponseUsage(Struct, frozen=True, kw_only=True):
    input_tokens: Count
    input_tokens_details: InputTokensDetails
    output_tokens: Count
    output_tokens_details: OutputTokensDetails
    total_tokens: Count


class IncompleteDetails(Struct, frozen=True, kw_only=True):
    reason: Literal["max_output_tokens"]
    """`sae` says what else may have ended it."""


class ResponseFault(Struct, frozen=True, kw_only=True):
    code: str
    message: str


class ModelResponse(Struct, frozen=True, kw_only=True):
    """OpenAI's response object, with `sae` at its end."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: ResponseFault | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    model: str
    output: tuple[OutputItem, ...] = ()
    parallel_tool_calls: bool
    previous_response_id: str | None = None
    reasoning: ReasoningOptions = ReasoningOptions()
    store: bool = False
    system_fingerprint: str
    temperature: float
    text: TextFormat = TextFormat(format=PlainFormat())
    tool_choice: str = "none"
    tools: tuple[str, ...] = ()
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    sae: AppliedIntervention | UnsetType = UNSET


class ResponseEvent(Struct, frozen=True, kw_only=True):
    """One event of a streamed response: its `type` says which of the members it has."""

    type: str
    sequence_number: Count
    response: ModelResponse | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    output_index: Count | UnsetType = UNSET
    content_index: Count | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    part: OutputPart | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    logprobs: tuple[float, ...] | UnsetType = UNSET


def begun(body: ResponsesBody, chat: Any) -> ModelResponse:
    """The response before there is any output. chat: an answer to the chat, or a chunk of one."""
    return ModelResponse(
        id=chat.id,
        created_at=chat.created,
        status="in_progress",
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        model=chat.model,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        system_fingerprint=chat.system_fingerprint,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        user=body.user,
    )


def item_of(kind: OutputKind, item_id: str, text: str | None, status: Status) -> OutputItem:
    """An item with its one part; None: it has none yet."""
    if kind == "reasoning":
        thoughts = () if text is None else (ReasoningText(text=text),)
        return OutputReasoning(id=item_id, status=status, content=thoughts)
    return OutputMessage(id=item_id, status=status, content=() if text is None else (OutputText(text=text),))


def id_of(kind: OutputKind, response_id: str) -> str:
    return f"{'rs' if kind == 'reasoning' else 'msg'}-{response_id}"


def usage_of(usage: Usage) -> ResponseUsage:
    details = usage.completion_tokens_details
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(
            reasoning_tokens=0 if isinstance(details, UnsetType) else details.reasoning_tokens
        ),
        total_tokens=usage.total_tokens,
    )


def status_of(finish_reason: str) -> Status:
    return "completed" if finish_reason in ("stop", "feature") else "incomplete"


def ended(
    response: ModelResponse, output: Sequence[OutputItem], finish_reason: str, usage: Usage, sae: AppliedIntervention
) -> ModelResponse:
    status = status_of(finish_reason)
    return replace(
        response,
        status=status,
        incomplete_details=IncompleteDetails(reason="max_output_tokens") if status == "incomplete" else None,
        output=tuple(output),
        usage=usage_of(usage),
        sae=sae,
    )


def whole(body: ResponsesBody, chat: ChatCompletion) -> ModelResponse:
    """The response that is not streamed."""
    (choice,) = chat.choices
    status, made = status_of(choice.finish_reason), choice.message
    output = [item_of("content", id_of("content", chat.id), made.content, status)]
    if made.reasoning_content:
        output.insert(0, item_of("reasoning", id_of("reasoning", chat.id), made.reasoning_content, "completed"))
    return ended(begun(body, chat), output, choice.finish_reason, chat.usage, chat.sae)
