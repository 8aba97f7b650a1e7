"""How the next token is chosen: the settings of a generation."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class ResponseFormat(Struct, frozen=True, kw_only=True):
    """The form that a text has."""

    type: Literal["json_object", "json_schema"]
    schema_sha256: str | None = None
    """Of the JSON schema as compact JSON, its keys in the order given. None: any JSON object."""
    schema: str | None = None
    """That JSON. Only where `[audit] record_text` is on."""


class Sampling(Struct, frozen=True, kw_only=True):
    """Sampling settings in force, seed included."""

    temperature: float
    top_p: float
    max_tokens: int
    """0: the prompt is run and nothing is made."""
    seed: int
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the generation, besides the model's own."""
    stop_in_hidden: bool = False
    """Stop strings are looked for in special tokens too that are left out of the text; False: in the text alone, as in
    logs of before."""
    include_stop_str_in_output: bool = False
    """What ends the text is shown: a stop string, or a token in so far as its like is."""
    ignore_eos: bool = False
    """The model's own end tokens do not end the text."""
    min_tokens: int = 0
    """Fewest tokens before a token or a stop string may end the generation. Until then tokens that would end it are not
    chosen, not even those of `ignore_eos`."""
    skip_special_tokens: bool = True
    """Special tokens are left out of the text."""
    top_k: int = 0
    """Only so many of the most probable tokens may be chosen, and what is as probable as the last of them; 0: all."""
    min_p: float = 0.0
    """Only tokens at least this share as probable as the most probable one."""
    repetition_penalty: float = 1.0
    """Logits of tokens that occur in prompt or answer are divided by this where positive, else multiplied."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that the answer has it."""
    presence_penalty: float = 0.0
    """Taken once from the logit of each token that the answer has."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens in ascending order, and what is added to the logit of each."""
    response_format: ResponseFormat | None = None
    """None: any text."""
