"""The messages of a chat, as OpenAI's clients send them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from ...errors import BadRequestError

TemplateVariables: TypeAlias = Annotated[dict[str, Any], Meta(max_length=64)]
RESERVED = frozenset({
    "conversation", "conversations", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "self",
})  # fmt: skip
"""What a request cannot give a chat template: what it gets anyway, and what is for the library that calls it."""


class TextPart(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class ChatMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """`developer` means `system`. Only an assistant's message may lack its content."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart | str] | UnsetType | None = UNSET
    reasoning_content: str | None = None
    """An assistant's thoughts before the content, for templates that write them; `reasoning` is the same."""
    reasoning: str | None = None

    def __post_init__(self) -> None:
        if self.content is UNSET and self.role != "assistant":
            raise ValueError("Object missing required field `content`")
        if self.reasoning and self.reasoning_content and self.reasoning != self.reasoning_content:
            raise ValueError("reasoning and reasoning_content differ")

    def plain(self) -> dict[str, str]:
        """As a template takes it."""
        said: dict[str, str] = {"role": "system" if self.role == "developer" else self.role, "content": self._text()}
        thoughts = self.reasoning_content or self.reasoning
        return {**said, "reasoning_content": thoughts} if thoughts else said

    def _text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part if isinstance(part, str) else part.text for part in self.content)
        return self.content or ""


def check_variables(names: Iterable[str]) -> None:
    """Of `chat_template_kwargs`. Raises `BadRequestError`."""
    wrong = next((name for name in names if name in RESERVED or not name.isidentifier()), None)
    if wrong is not None:
        param = f"chat_template_kwargs.{wrong[:80]}"
        raise BadRequestError(f"{param}: templates are not given a variable of this name", param=param)
