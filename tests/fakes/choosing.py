"""Which token the fake engine takes where a request changes that: made-up logits, processed one by one as defined."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from sae_actor.ports import GenerationRequest

if TYPE_CHECKING:
    from sae_actor.engine.decoding.grammars import Grammars

_CLOSING = frozenset(b'"}]')


def grammars(end: int, specials: Sequence[str]) -> Grammars:
    """Those of the service, for tokens that are bytes."""
    import llguidance

    from sae_actor.engine.decoding.grammars import Grammars

    class Bytes:
        eos_token_id, bos_token_id = end, None
        tokens = (*(bytes([each]) for each in range(end)), b"<end>", *(each.encode() for each in specials))
        special_token_ids = tuple(range(end, end + 1 + len(specials)))

        def __call__(self, text: bytes | str) -> list[int]:
            return list(text if isinstance(text, bytes) else text.encode())

    return Grammars(llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes())))


def changes(request: GenerationRequest) -> bool:
    """Whether the request has anything to say of single tokens."""
    sampling = request.sampling
    penalties = sampling.repetition_penalty != 1, sampling.frequency_penalty, sampling.presence_penalty
    return any(penalties) or bool(sampling.logit_bias) or request.grammar is not None


class Choosing:
    """Belongs to one text."""

    def __init__(self, request: GenerationRequest, key: bytes, vocabulary: int, end: int) -> None:
        self._request, self._key, self._size, self._end = request, key, vocabulary, end
        self._grammar: Any = None
        if request.grammar is not None:
            from sae_actor.engine.decoding.grammars import CompiledGrammar, GrammarState

            assert isinstance(request.grammar, CompiledGrammar)
            self._grammar = GrammarState(request.grammar, frozenset({end}))

    @property
    def over(self) -> bool:
        return self._grammar is not None and self._grammar.over

    def token(self, wanted: int, answer: Sequence[int], held_off: Collection[int]) -> int:
        """`wanted` is what comes without any changes. held_off: tokens that may not come."""
        sampling = self._request.sampling
        scores = [self._score(len(answer), token) for token in range(self._size)]
        scores[wanted] = 4.0
        if sampling.repetition_penalty != 1:
            for token in {*self._request.token_ids, *answer}:
                by = sampling.repetition_penalty
                scores[token] = scores[token] * by if scores[token] < 0 else scores[token] / by
        for token in set(answer):
            scores[token] -= answer.count(token) * sampling.frequency_penalty + sampling.presence_penalty
        for token, by in sampling.logit_bias:
            scores[token] += by
        allowed = set(range(self._size)) if self._grammar is None else self._allowed()
        # Where a grammar leaves nothing else, they may come.
        for token in held_off if not allowed <= set(held_off) else ():
            scores[token] = -math.inf
        if self._grammar is not None:
            scores = [score if token in allowed else -math.inf for token, score in enumerate(scores)]
        chosen = max(range(self._size), key=scores.__getitem__)
        if self._grammar is not None:
            self._grammar.add(chosen)
        return chosen

    def _allowed(self) -> set[int]:
        matcher = self._grammar.matcher
        if matcher is None:
            return {self._end}
        mask = matcher.compute_bitmask()
        return {token for token in range(self._size) if mask[token // 8] >> token % 8 & 1}

    def _score(self, index: int, token: int) -> float:
        """Between 0 and 3.9 for letters; what closes a value in JSON comes soon."""
        digest = hashlib.sha256(self._key + index.to_bytes(8, "little") + token.to_bytes(8, "little")).digest()
        if self._request.grammar is not None and token in _CLOSING:
            return 5.0 if digest[1] % 3 == 0 else 0.0
        return digest[0] / 256 * 3.9 if 32 <= token < 127 else -1.0
