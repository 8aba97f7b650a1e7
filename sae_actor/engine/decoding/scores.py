"""The scores of the tokens that a text is given with, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import InternalError
from ...ports import GenerationRequest, PromptToken, ScoredToken, Scores, TargetToken
from ..tokens.token_text import TokenTexts
from .logprobs import LEAST, MOST_VALUES, best_of, finite, prompt_token, scored_token


class Reference:
    """What the baseline says of the counted tokens of one chunk, for those that are compared with it."""

    def __init__(self, first: int, rows: Sequence[Tensor]) -> None:
        """rows: log probabilities [n, vocabulary] of the token `first` and those after it, in pieces."""
        self._first = first
        self._rows = rows[0] if len(rows) == 1 else torch.cat(list(rows)) if rows else None

    def divergence(self, first: int, logprobs: Tensor) -> Tensor:
        """KL(baseline ‖ other) [n] in nats, from the other's log probabilities [n, vocabulary] of token `first` on."""
        if self._rows is None:
            raise InternalError("the baseline has no scores of these tokens")
        own = self._rows[first - self._first : first - self._first + len(logprobs)]
        # What the baseline rules out adds nothing: 0 · (−∞) is left out.
        divergence: Tensor = (own.exp() * (own - logprobs)).nansum(dim=-1)
        return divergence


class TextScores:
    """Grows with each chunk; belongs to the device thread."""

    def __init__(self, request: GenerationRequest) -> None:
        more = () if request.scoring is None else request.scoring.continuation
        self.tokens: list[PromptToken] = []
        self._text = (*request.token_ids, *more)
        self._most = request.prompt_logprobs or 0
        self._scoring = request.scoring
        self._counted = len(request.token_ids) if more else 1
        """The first token that counts."""
        self._greedy = True
        self._divergence = 0.0
        self._compared = False
        self._next: tuple[tuple[TargetToken, ...], tuple[ScoredToken, ...]] = (), ()

    def take(
        self, first: int, logits: Tensor, pieces: TokenTexts, *, against: Reference | None = None, refer: bool = False
    ) -> Reference | None:
        """The tokens from `first` on were run, with these logits [tokens, vocabulary] after each. `InternalError` if
        they are not finite.

        against: what the counted ones are compared with. refer: return that, for others.
        """
        if not self.tokens:
            self.tokens.append(prompt_token(self._text[0], None, (), pieces))
        following = self._text[first + 1 : first + 1 + len(logits)]
        size = max(1, MOST_VALUES // logits.shape[-1])
        kept: list[Tensor] = []
        for start in range(0, len(following), size):
            some = following[start : start + size]
            logprobs = logits[start : start + len(some)].float().log_softmax(dim=-1)
            self._add(some, logprobs, pieces)
            skipped = max(0, self._counted - (first + 1 + start))
            if skipped >= len(some):
                continue
            if refer:
                kept.append(logprobs[skipped:])
            elif against is not None:
                found = against.divergence(first + 1 + start + skipped, logprobs[skipped:])
                self._divergence += sum(found.tolist())
        if self._scoring is not None and first + len(logits) == len(self._text):
            self._follow(logits[-1], pieces)
        self._compared = self._compared or refer or against is not None
        return Reference(max(first + 1, self._counted), kept) if refer else None

    def _add(self, some: Sequence[int], logprobs: Tensor, pieces: TokenTexts) -> None:
        chosen = torch.tensor(some, device=logprobs.device)[:, None]
        own = logprobs.gather(1, chosen)[:, 0]
        if bool(own.isnan().any()):
            raise InternalError("the model's logits are not finite")
        if self._most:
            best = logprobs.topk(min(self._most, logprobs.shape[-1]), dim=-1)
            tops = [best_of(*each, pieces) for each in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
            highest = best.values[:, 0]
        else:
            tops = [()] * len(some)
            highest = logprobs.amax(dim=-1)
        at = len(self.tokens)
        surpassed = (own < highest)[max(0, self._counted - at) :]
        self._greedy = self._greedy and not bool(surpassed.any())
        for token, logprob, top in zip(some, own.tolist(), tops, strict=True):
            self.tokens.append(prompt_token(token, max(logprob, LEAST), top, pieces))

    def _follow(self, logits: Tensor, pieces: TokenTexts) -> None:
        """Score what follows the whole text; `logits` [vocabulary]."""
        assert self._scoring is not None
        wanted = self._scoring.targets
        if not (wanted or self._most):
            return
        logits = logits.float()
        logprobs = finite(logits).log_softmax(dim=-1)
        best = logprobs.topk(min(self._most, len(logprobs)))
        targets = []
        for token in wanted:
            scored = scored_token(token, float(logprobs[token]), pieces)
            rank = 1 + int((logits > logits[token]).sum())
            targets.append(
                TargetToken(
                    id=token, text=scored.text, bytes=scored.bytes, logprob=scored.logprob,
                    logit=max(float(logits[token]), LEAST), rank=rank,
                )
            )  # fmt: skip
        self._next = tuple(targets), best_of(best.indices.tolist(), best.values.tolist(), pieces)

    def result(self) -> Scores:
        """Once all of it was run."""
        counted = len(self._text) - self._counted
        kl = max(0.0, self._divergence / counted) if self._compared and counted > 0 else None
        targets, top = self._next
        return Scores(greedy=self._greedy, kl=kl, targets=targets, top=top)
