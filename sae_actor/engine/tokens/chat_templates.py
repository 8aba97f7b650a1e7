"""Chats rendered by a model's template, and where each message is in that."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .marks import Marked, Marks, Message, Piece, said

FAILURES = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Errors of a template: its own, and those of messages that it did not expect."""


class Rendering(NamedTuple):
    """A chat as text, and the pieces that are contents of messages, in the order of the text."""

    text: str
    pieces: tuple[Piece, ...] | None
    """None if the template does not show them."""


class ChatTemplate:
    """The template of a tokenizer, with the tools that it may write."""

    def __init__(
        self,
        tokenizer: Any,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """variables: what the template is given besides the messages; one that it does not know changes nothing."""
        self._tokenizer = tokenizer
        self._tools = list(tools or ()) or None
        self._variables = dict(variables or {})
        self.bare = ChatTemplate(tokenizer, variables=variables) if self._tools else None
        """The same without tools; None if there are none."""
        self.heads: dict[str, frozenset[str]] = {}
        """Kept by `turns`: what is written before the messages of a role."""

    def given(self, variables: Mapping[str, Any]) -> ChatTemplate:
        """The same template with these variables."""
        return ChatTemplate(self._tokenizer, self._tools, variables) if variables else self

    def knows(self, variable: str) -> bool:
        """Whether the template reads a variable of that name."""
        return variable in _variables_of(self.source)

    @property
    def source(self) -> str:
        """As it is written."""
        written: str = self._tokenizer.get_chat_template(tools=self._tools)
        return written

    @property
    def has_places(self) -> bool:
        """Whether the tokenizer reports which characters a token holds."""
        return bool(self._tokenizer.is_fast)

    @property
    def beginning(self) -> str:
        """The BOS token as text; empty if there is none."""
        return self._tokenizer.bos_token or ""

    def borders(self, text: str) -> list[int]:
        """Where tokens of the text begin; empty with a tokenizer that does not report it."""
        if not self.has_places:
            return []
        spans = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        return [start for start, _ in spans]

    def text(self, messages: Sequence[Message], *, opened: bool = False) -> str:
        """The messages as the template writes them; `opened`: with the beginning of an answer. Raises `FAILURES`."""
        written: str = self._tokenizer.apply_chat_template(
            [dict(each) for each in messages],
            tools=self._tools,
            tokenize=False,
            add_generation_prompt=opened,
            **self._variables,
        )
        return written

    def rendered(self, messages: Sequence[Message], *, opened: bool = False) -> Rendering:
        """Raises as `text`. The places are those of a rendering with marks, which is the same without them."""
        text = self.text(messages, opened=opened)
        texts = [text, *(each for message in messages for each in said(message).values())]
        # An empty message gets no mark: it could keep the template from trimming blanks.
        ways = ((self._seen_through, True), (self._in_plain, True), (self._seen_through, False))
        for way, nothing in ways:
            marks = Marks(texts, nothing=nothing)
            try:
                marked = way(messages, marks, opened)
            except FAILURES:
                continue  # it is the marks that it fails on
            bare, pieces = marks.found(marked, blanks=True)
            if bare != text:
                continue
            within = marks.found(marked, blanks=False)[1]
            if pieces != within and (dropped := self._without_blanks(messages, text, opened)):
                pieces = [
                    inner if inner.message in dropped else outer for inner, outer in zip(within, pieces, strict=True)
                ]
            return Rendering(text, tuple(pieces))
        return Rendering(text, None)

    def continued(self, messages: Sequence[Message]) -> Rendering | None:
        """The messages up to the end of the last one's content, as the template writes it; None if it does not show
        that. Raises as `text`."""
        text, pieces = self.rendered(messages)
        own = [piece for piece in pieces or () if piece.message == len(messages) - 1]
        if not own or own[-1] != (pieces or ())[-1]:
            return None
        return Rendering(text[: own[-1].end], pieces)

    def _seen_through(self, messages: Sequence[Message], marks: Marks, opened: bool) -> str:
        """Marks that the template does not see. The library hands on plain strings alone, so this is its environment
        made once more; what differs in it is found out, for the rendering is compared."""
        template = _compiled(self.source)
        marked = [
            {**each, **{key: Marked(text, at, marks) for key, text in said(each).items()}}
            for at, each in enumerate(messages)
        ]
        given = {**self._tokenizer.special_tokens_map, "documents": None, "tools": self._tools}
        return template.render(**{**given, **self._variables}, messages=marked, add_generation_prompt=opened)

    def _in_plain(self, messages: Sequence[Message], marks: Marks, opened: bool) -> str:
        """Marks as characters of the text, through the library's own rendering."""
        marked = [
            {**each, **{key: marks.wrapped(text, at) for key, text in said(each).items()}}
            for at, each in enumerate(messages)
        ]
        return self.text(marked, opened=opened)

    def _without_blanks(self, messages: Sequence[Message], text: str, opened: bool) -> frozenset[int]:
        """Messages whose outer blanks make no difference: the blanks there are the template's own."""
        stripped = [{**each, **{key: found.strip() for key, found in said(each).items()}} for each in messages]
        changed = frozenset(at for at, each in enumerate(messages) if each != stripped[at])
        try:
            return changed if changed and self.text(stripped, opened=opened) == text else frozenset()
        except FAILURES:
            return frozenset()


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def _environment() -> jinja2.Environment:
    """As transformers documents what a chat template may use."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_refuse, strftime_now=lambda form: datetime.now().strftime(form))
    return environment


@functools.lru_cache(maxsize=8)
def _variables_of(template: str) -> frozenset[str]:
    return frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(template)))


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: what is within it is written."""

    tags = {"generation"}  # noqa: RUF012  # jinja's own form

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **more: Any) -> str:
    return json.dumps(_quotable(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, **more)


def _quotable(value: Any) -> Any:
    """With the marks around the blanks: in JSON those are written as characters of other kinds."""
    if isinstance(value, Marked):
        return value.marks.wrapped(value.seen, value.message, blanks=True)
    if isinstance(value, Mapping):
        return {key: _quotable(each) for key, each in value.items()}
    return [_quotable(each) for each in value] if isinstance(value, list | tuple) else value


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
