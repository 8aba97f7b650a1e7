"""The events of a streamed response, from the chunks of a chat.

A response has at most two items, reasoning and message; each is added with its first text and done at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from ....errors import InternalError, SAEError
from ....ports import PositionDetails
from ....subscriptions import sse
from ...problems import openai_view
from ..answers import AppliedIntervention, ChatCompletionChunk, Usage
from ..replies import Chunk
from .answers import (
    ModelResponse,
    OutputItem,
    OutputKind,
    OutputText,
    ReasoningText,
    ResponseEvent,
    begun,
    ended,
    id_of,
    item_of,
    status_of,
)
from .requests import ResponsesBody


class _Output:
    """An item under way."""

    def __init__(self, kind: OutputKind, index: int, response_id: str) -> None:
        self.kind = kind
        self.index = index
        self.id = id_of(kind, response_id)
        self.text = ""

    @property
    def where(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.index, "content_index": 0}

    @property
    def name(self) -> str:
        return "response.reasoning_text" if self.kind == "reasoning" else "response.output_text"

    def part(self) -> OutputText | ReasoningText:
        return ReasoningText(text=self.text) if self.kind == "reasoning" else OutputText(text=self.text)


class ResponseFrames:
    """Makes the frames of one response, in order."""

    def __init__(self, body: ResponsesBody) -> None:
        self._body = body
        self._numbers = count()
        self._outputs: dict[OutputKind, _Output] = {}
        self._response: ModelResponse | None = None
        self._finish_reason = ""
        self._usage: Usage | None = None
        self._sae: AppliedIntervention | None = None
        self._positions: list[PositionDetails] = []

    def of(self, chunk: Chunk, _: int) -> Iterator[bytes]:
        """Those that a chunk brings."""
        assert isinstance(chunk, ChatCompletionChunk)
        if self._response is None:
            self._response = begun(self._body, chunk)
            yield self._event("response.created", response=self._response)
            yield self._event("response.in_progress", response=self._response)
        for choice in chunk.choices:
            if choice.delta.reasoning_content:
                yield from self._text("reasoning", choice.delta.reasoning_content)
            if choice.delta.content:
                yield from self._text("content", choice.delta.content)
            self._finish_reason = choice.finish_reason or self._finish_reason
        self._usage = chunk.usage or self._usage
        if not isinstance(chunk.sae, UnsetType):
            self._positions += chunk.sae.positions or ()
            self._sae = chunk.sae if isinstance(chunk.sae, AppliedIntervention) else None

    def end(self) -> Iterator[bytes]:
        """The last ones, after all chunks."""
        if self._response is None or self._usage is None or self._sae is None:
            raise InternalError("the stream ended without its last chunk")
        if "content" not in self._outputs:
            yield from self._text("content", "")
        made: list[OutputItem] = []
        for output in self._outputs.values():
            status = "completed" if output.kind == "reasoning" else status_of(self._finish_reason)
            made.append(item_of(output.kind, output.id, output.text, status))
            scores = () if output.kind == "content" else UNSET
            yield self._event(f"{output.name}.done", text=output.text, logprobs=scores, **output.where)
            yield self._event("response.content_part.done", part=output.part(), **output.where)
            yield self._event("response.output_item.done", item=made[-1], output_index=output.index)
        sae = self._sae
        if not isinstance(sae.positions, UnsetType):
            sae = replace(sae, positions=tuple(self._positions))
        response = ended(self._response, made, self._finish_reason, self._usage, sae)
        yield self._event(f"response.{response.status}", response=response)

    def failed(self, error: SAEError) -> bytes:
        """In place of the rest. OpenAI's clients raise what has a member `error`."""
        fault = openai_view(error)["error"]
        said = {key: fault.get(key) for key in ("code", "message", "param")}
        value = {"type": "error", **said, "sequence_number": next(self._numbers), "error": fault}
        return sse("error", value)

    def _text(self, kind: OutputKind, text: str) -> Iterator[bytes]:
        output = self._outputs.get(kind)
        if output is None:
            assert self._response is not None
            output = self._outputs[kind] = _Output(kind, len(self._outputs), self._response.id)
            item = item_of(kind, output.id, None, "in_progress")
            yield self._event("response.output_item.added", item=item, output_index=output.index)
            yield self._event("response.content_part.added", part=output.part(), **output.where)
        output.text += text
        if text:
            scores = () if kind == "content" else UNSET
            yield self._event(f"{output.name}.delta", delta=text, logprobs=scores, **output.where)

    def _event(self, type_: str, **more: Any) -> bytes:
        return sse(type_, ResponseEvent(type=type_, sequence_number=next(self._numbers), **more))
