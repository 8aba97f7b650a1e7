"""What of a request changes which token is chosen, besides temperature and `top_p`."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ...domain.events import ResponseFormat
from ...domain.refs import ModelFacts
from ...errors import BadRequestError
from ...ports import Engine, Grammar
from ..context import context
from ..disconnects import heard
from ..types import AnyRequest

MAX_CHOICES = 16
MAX_BIASES = 1024
MAX_SCHEMA_BYTES = 64 * 1024
ANY_OBJECT = '{"type":"object"}'
Penalty = Annotated[float, Meta(ge=-2, le=2)]
BiasedToken = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Biases = Annotated[dict[BiasedToken, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_BIASES)]


class NamedSchema(Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON schema. The text follows it whether or not `strict` says so."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    schema: dict[str, Any]
    description: Annotated[str, Meta(max_length=4096)] | None = None
    strict: bool | None = None


class RequestedFormat(Struct, frozen=True, forbid_unknown_fields=True):
    """`response_format`: plain text, a JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    """Needed with `json_schema`, and for nothing else."""


class SamplingFields(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fields of a request for text. null: as if it were not there."""

    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    """Choices for each prompt, with seeds that follow one another."""
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    """-1 or 0: all tokens."""
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    """Token id → what is added to its logit."""
    response_format: RequestedFormat | None = None

    @property
    def choices(self) -> int:
        """For each prompt."""
        return self.n or 1

    @property
    def schema(self) -> str | None:
        """The JSON schema that the text has to follow; None: any text. `BadRequestError` for half of a format."""
        form = self.response_format
        if form is None:
            return None
        if (form.json_schema is not None) != (form.type == "json_schema"):
            raise BadRequestError(
                "response_format: give json_schema with the type json_schema, and with no other",
                param="response_format",
            )
        if form.json_schema is None:
            return ANY_OBJECT if form.type == "json_object" else None
        schema = msgspec.json.encode(form.json_schema.schema)
        if len(schema) > MAX_SCHEMA_BYTES:
            raise BadRequestError(
                f"response_format: the schema takes {len(schema)} bytes; at most {MAX_SCHEMA_BYTES}",
                param="response_format",
            )
        return schema.decode()

    def processors(self, model: ModelFacts) -> dict[str, Any]:
        """The fields of `Sampling` that these are. `BadRequestError` for a token that there is not."""
        bias = sorted((int(token), by) for token, by in (self.logit_bias or {}).items())
        if bias and model.vocabulary is not None and bias[-1][0] >= model.vocabulary:
            raise BadRequestError(
                f"logit_bias: {bias[-1][0]} is outside the vocabulary of {model.vocabulary}", param="logit_bias"
            )
        return {
            "top_k": max(0, self.top_k or 0),
            "min_p": self.min_p or 0.0,
            "repetition_penalty": 1.0 if self.repetition_penalty is None else self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "presence_penalty": self.presence_penalty or 0.0,
            "logit_bias": tuple((token, by) for token, by in bias if by),
            "response_format": self._on_record(),
        }

    def _on_record(self) -> ResponseFormat | None:
        form, schema = self.response_format, self.schema
        if form is None or schema is None:
            return None
        if form.json_schema is None:
            return ResponseFormat(type="json_object")
        return ResponseFormat(type="json_schema", schema_sha256=hashlib.sha256(schema.encode()).hexdigest())


async def grammar_of(request: AnyRequest, engine: Engine, fields: SamplingFields) -> Grammar | None:
    """The grammar of `response_format`; compiled off the loop, a few clients at a time. Raises the engine's errors,
    and `MailboxFullError` if too many are waiting."""
    schema = fields.schema
    if schema is None:
        return None
    async with heard(request), context(request).prompts.taken():
        return await engine.grammar(schema)
