"""What a run is asked for, and its texts: in the request, in a file under `[data] texts_roots`, or uploaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from ...domain.commands import PlainText, RequestedVariant
from ...errors import BadRequestError, ForbiddenError, TextsNotFoundError
from ...runs.lists import MOST_CHARACTERS, Item, kind_of, read_file
from ..context import context
from ..text.fields import MESSAGES
from ..text.messages import ChatMessage
from ..types import AnyRequest

T = TypeVar("T")
Text: TypeAlias = Annotated[str, Meta(max_length=MOST_CHARACTERS)]
Chat: TypeAlias = Annotated[tuple[ChatMessage, ...], Meta(min_length=1)]
Label: TypeAlias = Annotated[str, Meta(max_length=1000)] | int | float | bool


class AskedRun(Struct, frozen=True, kw_only=True):
    """A spec, checked."""

    spec: dict[str, Any]
    lists: Mapping[str, Iterable[Item]]
    """By role."""
    origins: dict[str, dict[str, str]] = {}
    """Where they came from, as `RunTexts` names it."""
    read: tuple[str, ...] = ()
    variants: tuple[RequestedVariant, ...] = ()
    seeds: tuple[int, ...] = ()


class LabelledText(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text or a chat, and what it is."""

    text: Text | None = None
    messages: Chat | None = None
    label: Label | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give text, or messages")


class TextsSource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Texts: in the request, in a file under `[data] texts_roots`, or uploaded."""

    texts: tuple[Text, ...] | None = None
    file: PlainText | None = None
    texts_id: PlainText | None = None

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.texts, self.file, self.texts_id)) != 1:
            raise ValueError("give one of texts, file, texts_id")

    @property
    def origin(self) -> dict[str, str]:
        """As `RunTexts` names it."""
        return {name: value for name in ("file", "texts_id") if (value := getattr(self, name)) is not None}

    def items(self, request: AnyRequest) -> Iterator[Item]:
        """Read while they are written. What cannot be read at all is refused at once."""
        if self.texts is not None:
            if not self.texts:
                raise BadRequestError("give at least one text", param="texts")
            return (_item(each) for each in self.texts)
        if self.texts_id is not None:
            return _uploaded(request, self.texts_id)
        assert self.file is not None
        path = _resolved(self.file, context(request).texts_roots)
        return read_file(path, kind_of(path.name))


class ChatsSource(TextsSource, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Texts or chats, with labels or without."""

    texts: tuple[Text | Chat | LabelledText, ...] | None = None  # type: ignore[assignment]  # wider

    def items(self, request: AnyRequest) -> Iterator[Item]:
        return map(_checked, super().items(request))


def chats_source(value: Any, where: str) -> ChatsSource:
    """A bare list is that of `texts`. The error names the member."""
    asked = {"texts": value} if isinstance(value, list) else value
    texts = asked.get("texts") if isinstance(asked, dict) else None
    for at, text in enumerate(texts if isinstance(texts, list) else ()):
        messages = text.get("messages") if isinstance(text, dict) else text
        if isinstance(messages, list):
            MESSAGES.settle({"messages": messages}, f"{where}[{at}].")
    return as_asked(asked, ChatsSource, where)


def as_asked(value: Any, type_: type[T], where: str) -> T:
    """Strict, as every body; the error names the member."""
    try:
        return msgspec.convert(value, type_)
    except (msgspec.ValidationError, ValueError) as error:
        raise BadRequestError(f"{where}: {str(error)[:400]}", param=where) from None


def _item(given: str | tuple[ChatMessage, ...] | LabelledText) -> Item:
    if isinstance(given, str):
        return Item(text=given)
    if isinstance(given, LabelledText):
        return Item(
            text=given.text, messages=None if given.messages is None else _plain(given.messages), label=given.label
        )
    return Item(messages=_plain(given))


def _plain(messages: tuple[ChatMessage, ...]) -> tuple[dict[str, Any], ...]:
    return tuple(message.plain() for message in messages)


def _checked(item: Item) -> Item:
    """A chat out of a file is a chat, as a template takes it."""
    if item.messages is None:
        return item
    chat = as_asked(list(item.messages), tuple[ChatMessage, ...], "messages")
    return Item(messages=_plain(chat), label=item.label)


def _uploaded(request: AnyRequest, texts_id: str) -> Iterator[Item]:
    file = context(request).runs.folder.open_texts(texts_id)

    def items() -> Iterator[Item]:
        with closing(file):
            yield from file.all_texts("texts")

    return items()


def _resolved(name: str, roots: tuple[Path, ...]) -> Path:
    """The file, if it is under a root; a relative name is looked for under each."""
    asked = Path(name)
    for root in roots:
        path = (root / asked).resolve()  # an absolute name stays as it is
        if path.is_relative_to(root.resolve()) and path.is_file():
            return path
    inside = any((root / asked).resolve().is_relative_to(root.resolve()) for root in roots)
    if not inside:
        raise ForbiddenError("files of texts lie under [data] texts_roots", param="file")
    raise TextsNotFoundError("there is no such file of texts", param="file")
