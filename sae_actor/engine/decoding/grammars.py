"""Texts of a given form: JSON schemas compiled to grammars, and which tokens a grammar allows next.

The library is llguidance. It has the tokens of the model as bytes; a grammar is compiled once, and each generation has
a copy. Compiling and masking are bounded by the library's own fuel (`_limits`), and neither holds the interpreter.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import llguidance
import numpy as np
import torch
import transformers
from llguidance.hf import from_tokenizer
from numpy.typing import NDArray
from torch import Tensor

from ...errors import BadRequestError, SAEUnsupportedError
from ...ports import Grammar

logger = logging.getLogger(__name__)

SETTINGS: Any = {
    "whitespace_flexible": True,
    # A space, or a new line with its indent: as models write JSON, and never without end.
    "whitespace_pattern": r"( |\n {0,20}|\n\t{0,5})?",
    "lenient": False,
    "coerce_one_of": False,
    "item_separator": ",",
    "key_separator": ":",
}
"""All of them: a schema could set those that are left out."""
MOST_KEPT = 64
"""Compiled grammars that are kept."""
FEW = 8
MANY_CORES = 4
"""So many masks are computed one after the other, and all of them on a machine of fewer cores."""
_WORD = 32
_BIT = np.uint32(1) << np.arange(_WORD, dtype=np.uint32)


def _limits() -> llguidance.LLParserLimits:
    """Of the states of a lexer (1 to 2 kB each) far fewer than the library's 250,000; everything else is its own."""
    return llguidance.LLParserLimits(max_lexer_states=30_000, verbose_errors=False)


def byte_tokens(tokenizer: Any, vocabulary: int, end_ids: Collection[int]) -> llguidance.LLTokenizer | None:
    """The tokens of a tokenizer of transformers as bytes; None if it does not show them.

    Takes part of a second, without letting other threads run: for the time when a model is loaded.
    """
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerFast):
        return None
    size, slices = max(vocabulary, len(tokenizer)), llguidance.LLTokenizer.json_slices()
    try:
        return from_tokenizer(tokenizer, n_vocab=size, eos_token=sorted(end_ids) or None, slices=slices)
    except (ValueError, TypeError) as error:  # it knows the common kinds of tokenizers
        logger.warning("no text of this model can be given a form: %s", error)
        return None


class CompiledGrammar(Grammar):
    """A grammar for the tokens of one model."""

    def __init__(self, matcher: llguidance.LLMatcher, tokens: llguidance.LLTokenizer) -> None:
        self._matcher = matcher
        self.tokens = tokens

    def matcher(self) -> llguidance.LLMatcher:
        """One at the beginning of a text."""
        return self._matcher.deep_copy()


class Grammars:
    """Compiles for one model, and keeps what it compiled. Belongs to one thread, but for its construction."""

    def __init__(self, tokens: llguidance.LLTokenizer | None) -> None:
        """tokens: those of the model; None if its tokenizer does not show their bytes."""
        self._known: OrderedDict[str, CompiledGrammar] = OrderedDict()
        self.tokens = tokens

    def compiled(self, schema: str) -> CompiledGrammar:
        """The grammar of the texts that follow a JSON schema. `BadRequestError` with the reason if there is none,
        `SAEUnsupportedError` if the tokenizer shows no bytes."""
        known = self._known.get(schema)
        if known is None:
            known = self._known[schema] = self._compile(schema)
            if len(self._known) > MOST_KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(schema)
        return known

    def _compile(self, schema: str) -> CompiledGrammar:
        if self.tokens is None:
            raise SAEUnsupportedError(
                "the model's tokenizer does not show the bytes of its tokens", param="response_format"
            )
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=SETTINGS)
        except ValueError as error:
            raise _refused(str(error)) from None
        matcher = llguidance.LLMatcher(self.tokens, grammar, log_level=0, limits=_limits())
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return CompiledGrammar(matcher, self.tokens)


def _refused(reason: str) -> BadRequestError:
    line = (reason.strip().splitlines() or ["no reason given"])[0]
    return BadRequestError(f"response_format: {line[:300]}", param="response_format")


class GrammarState:
    """Where one generation is in its grammar."""

    def __init__(self, grammar: CompiledGrammar, end_ids: frozenset[int]) -> None:
        self.waits = False
        """Nothing is asked of the text yet: it is reasoning."""
        self._matcher = grammar.matcher()
        self._end_ids = end_ids or frozenset(grammar.tokens.eos_tokens)
        self._vocabulary = grammar.tokens.vocab_size
        self._ended = False
        self._left = False

    @property
    def binds(self) -> bool:
        """The next token has to follow it."""
        return not (self.waits or self._left)

    @property
    def over(self) -> bool:
        """The text is complete: only an end may follow."""
        return self.binds and (self._ended or self._matcher.is_stopped())

    @property
    def matcher(self) -> llguidance.LLMatcher | None:
        """None where only an end may follow."""
        return None if self._ended else self._matcher

    @property
    def end_ids(self) -> frozenset[int]:
        return self._end_ids

    @property
    def vocabulary(self) -> int:
        """Tokens that the matcher knows."""
        return self._vocabulary

    def add(self, token: int) -> None:
        """The text goes on with a token; one that the grammar does not allow (of an earlier answer) leaves it."""
        if not self.binds or self._ended:
            return
        if token in self._end_ids and self._matcher.is_accepting():
            self._ended = True
        elif self._matcher.validate_tokens([token]):
            self._matcher.consume_token(token)
        else:
            self._left = True


def beginning(grammar: Grammar | None, end_ids: Sequence[int]) -> GrammarState | None:
    """The grammar of a text that begins; None: it may be any."""
    return GrammarState(grammar, frozenset(end_ids)) if isinstance(grammar, CompiledGrammar) else None


class Masks:
    """Computes the masks of a step next to each other. Belongs to the device thread."""

    def __init__(self) -> None:
        self._executor: llguidance.LLExecutor | None = None
        """Threads of its own; made when they are needed."""

    def apply(self, logits: Tensor, states: Sequence[GrammarState]) -> None:
        """Leave what the grammars rule out no chance: row i of `logits` [rows, vocabulary] follows the i-th.

        `BadRequestError` if a grammar takes more than its limits.
        """
        width = logits.shape[1]
        words = np.zeros((len(states), -(-width // _WORD)), dtype=np.int32)
        self._fill(words, states)
        forbidden = _bits(~words, logits.device)[:, :width]
        logits.masked_fill_(forbidden, -torch.inf)

    def _fill(self, words: NDArray[np.int32], states: Sequence[GrammarState]) -> None:
        """Set the bits of what is allowed."""
        bound = [(state.matcher, row) for row, state in enumerate(states) if state.matcher is not None]
        if bound:
            # Its rows are as wide as its vocabulary, which may be a little more than that of the logits.
            size = -(-states[0].vocabulary // _WORD)
            filled = np.zeros((len(states), size), dtype=np.int32)
            if len(bound) <= FEW or (os.cpu_count() or 1) < MANY_CORES:
                # Microseconds each: less than to wait for another thread.
                for matcher, row in bound:
                    matcher.unsafe_compute_mask_ptr(filled[row].ctypes.data, size * 4)
            else:
                self._executor = self._executor or llguidance.LLExecutor()
                self._executor.unsafe_compute_mask_ptr(bound, filled.ctypes.data, size * 4, len(states))
            words[:, :size] = filled[:, : words.shape[1]]
        for row, state in enumerate(states):
            if state.matcher is None:
                for token in state.end_ids:
                    words.view(np.uint32)[row, token // _WORD] |= _BIT[token % _WORD]
            elif state.matcher.is_error():
                raise _refused(state.matcher.get_error())


def _bits(words: NDArray[np.int32], device: torch.device) -> Tensor:
    """[rows, 32 * words] bool, on the device."""
    if device.type == "cpu":
        return torch.from_numpy(np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")).view(torch.bool)
    packed = torch.from_numpy(words).to(device)
    shifts = torch.arange(_WORD, dtype=torch.int32, device=device)
    return ((packed[:, :, None] >> shifts) & 1).bool().flatten(1)
