"""Texts that are scored, not made: what is asked of them, and what comes of it."""

from __future__ import annotations

from msgspec import Struct


class ScoredToken(Struct, frozen=True, kw_only=True):
    """A candidate for the next token with its log probability: log-softmax of the steered logits in float32, before
    temperature and top_p; −9999 for tokens that the model rules out."""

    id: int
    text: str
    """As it is written, also for special tokens; U+FFFD for a part of a character."""
    bytes: bytes | None
    """None if the bytes of a partial character are unknown."""
    logprob: float


class PromptToken(Struct, frozen=True, kw_only=True):
    """A given token, scored as `ScoredToken` says; the logits are those under the intervention."""

    id: int
    text: str
    bytes: bytes | None
    logprob: float | None
    """None: of the first one, before which there is nothing."""
    top: tuple[ScoredToken, ...] = ()
    """The most probable tokens there, best first; one that is this token has the same `logprob`."""


class TargetToken(ScoredToken, frozen=True, kw_only=True):
    """A named token as the next one."""

    logit: float
    rank: int
    """1: no token is more probable."""


class Scoring(Struct, frozen=True, kw_only=True):
    """Score the prompt and what follows it; nothing is generated. For `Engine.score`."""

    continuation: tuple[int, ...] = ()
    """Tokens after the prompt, at positions that count as generated."""
    runs_last: bool = False
    """Run the last token of the continuation too, for what would follow it. The last one of a prompt always is."""
    targets: tuple[int, ...] = ()
    """Tokens to score as the one that follows the whole text."""


class Scores(Struct, frozen=True, kw_only=True):
    """What came of a `Scoring`, besides the scores of the tokens. The counted ones are those of the continuation;
    without one, all but the first."""

    greedy: bool
    """Whether no token was more probable than the counted one, at each of them."""
    kl: float | None = None
    """KL(baseline ‖ this) in nats, the mean over the counted tokens; None without a baseline, or with none of them."""
    targets: tuple[TargetToken, ...] = ()
    top: tuple[ScoredToken, ...] = ()
    """The most probable tokens after the text, best first; empty if its last token was not run."""
