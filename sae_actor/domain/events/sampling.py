"""How the next token is chosen: the settings of a generation."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class ResponseFormat(Struct, frozen=True, kw_only=True):
    """The form that the text must have."""

    type: Literal["json_object", "json_schema"]
    schema_sha256: str | None = None
    """sha256 of the JSON schema, as compact JSON with its keys in the given order. None: any JSON object."""
    schema: str | None = None
    """The JSON schema itself; only recorded if `[audit] record_text` is on."""


class Sampling(Struct, frozen=True, kw_only=True):
    """Sampling settings in force, seed included."""

    temperature: float
    top_p: float
    max_tokens: int
    """The most tokens to generate; 0: only the prompt is run."""
    seed: int
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the generation, besides the model's own."""
    stop_in_hidden: bool = False
    """Stop strings are also searched in special tokens that are left out of the text. False: only in the text, as in
    older logs."""
    include_stop_str_in_output: bool = False
    """What ends the text is shown: a stop string, or a token in so far as its like is."""
    ignore_eos: bool = False
    """The model's own end tokens do not end the text."""
    min_tokens: int = 0
    """How many tokens there must be before a token or a stop string may end the generation. Until then tokens that
    would end it are not chosen, with `ignore_eos` too."""
    skip_special_tokens: bool = True
    """Special tokens are left out of the text."""
    top_k: int = 0
    """Choose only among this many of the most probable tokens, and those as probable as the last of them; 0: all."""
    min_p: float = 0.0
    """Choose only among tokens whose probability is at least this share of the highest one."""
    repetition_penalty: float = 1.0
    """Divides the positive logits, and multiplies the negative ones, of tokens that occur in prompt or answer."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that it occurs in the answer."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of each token that occurs in the answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens in ascending order, each with the number added to its logit."""
    response_format: ResponseFormat | None = None
    """The form of the text; None: any text."""
