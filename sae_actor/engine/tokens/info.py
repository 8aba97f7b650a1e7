"""What is known of a tokenizer, and tokens as text."""

from __future__ import annotations

from collections.abc import Sequence

from ...domain.structs import filled
from ...errors import BadRequestError
from ...ports import TokenizerInfo
from .tokenizer import Tokenizer


def info_of(tokenizer: Tokenizer) -> TokenizerInfo:
    raw = tokenizer.raw
    named = {raw.bos_token, raw.eos_token, raw.pad_token, raw.unk_token}
    return filled(
        TokenizerInfo,
        raw,
        tokenizer_class=type(raw).__name__,
        additional_special_tokens=tuple(each for each in raw.all_special_tokens if each not in named),
        add_bos_token=tokenizer.beginning is not None and tokenizer.beginning in tokenizer.around[0],
        chat_template=None if tokenizer.template is None else tokenizer.template.source,
        model_max_length=tokenizer.context_length,
        vocab_size=tokenizer.vocabulary,
    )


def check_ids(token_ids: Sequence[int], tokenizer: Tokenizer) -> None:
    """`BadRequestError` for one outside the vocabulary."""
    wrong = next((each for each in token_ids if not 0 <= each < tokenizer.vocabulary), None)
    if wrong is not None:
        raise BadRequestError(f"token id {wrong} is outside the vocabulary of {tokenizer.vocabulary}", param="prompt")


def detokenized(token_ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of tokens, special ones as they are written. `BadRequestError` as of `check_ids`."""
    check_ids(token_ids, tokenizer)
    return tokenizer.decode(list(token_ids), special=True)
