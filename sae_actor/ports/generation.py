"""What a text is asked with, and what it delivers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from msgspec import Struct

from ..domain.chats import MessageSpan, Reasoning
from ..domain.events import Receipt, Sampling
from ..domain.refs import SINK_WINDOW, ActiveSae, Exclusion, FinishReason, Intervention, StopWhen


class Tokenized(Struct, frozen=True, kw_only=True):
    """A prompt as the model sees it."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...] = ()
    """Text of each token, which joined are the prompt."""
    special: tuple[bool, ...] = ()
    """Which tokens are special ones of the tokenizer, such as marks of beginning, end and turns."""
    turns: tuple[MessageSpan, ...] | None = ()
    """The messages of a chat, as they follow in its tokens; one that the template leaves out has none, and neither has
    a text that is no chat. None: the template does not tell."""
    reasoning: Reasoning | None = None
    """Of a chat whose template knows thoughts: how its answer tells them apart."""


class FeatureActivation(Struct, frozen=True):
    """Activation of one feature at one position."""

    feature: int
    activation: float


class Activations(Struct, frozen=True, kw_only=True):
    """What an SAE reads at positions `first`, `first` + 1, … of the activation that arrives at its hook point,
    before its own edits and those of others there."""

    sae_id: str
    first: int
    rows: tuple[tuple[FeatureActivation, ...], ...]
    sinks: tuple[bool, ...]
    """Which of the positions are attention sinks there."""
    excluded: tuple[bool, ...]
    """Which of them are left out."""


class Watch(Struct, frozen=True, kw_only=True):
    """An SAE whose activations are told with a text; it may be in the intervention too."""

    sae: ActiveSae
    """Which resident, and where; its mode and steering are not asked for."""
    top_k: int | None = None
    """So many of the largest activations of each position, by magnitude, those that are not 0; None, with
    `features`: every one of those, in their order, also where it is 0."""
    features: tuple[int, ...] | None = None
    """Only of these; None: of all."""
    exclude: tuple[Exclusion, ...] = ()
    """Positions of which none of the largest are told: their rows are empty. `features` without `top_k` are told of
    every position."""
    every_seconds: float | None = None
    """Told at most so often, of the newest position of a step alone, and left out of the other tokens, or all of them
    where the SAE is not there; None: of all positions. Such ones stand last in `GenerationRequest.watched`."""


class GenerationRequest(Struct, frozen=True, kw_only=True):
    """One admitted request: everything the engine needs, frozen."""

    generation_id: str
    token_ids: tuple[int, ...]
    sampling: Sampling
    intervention: Intervention
    deadline_seconds: float = 600.0
    logprobs: int | None = None
    """Score each token, and so many of the most probable ones beside it; None: no scores."""
    watched: tuple[Watch, ...] = ()
    """SAEs that are read on the way. One that is not there ends the text as one of the intervention does, unless it is
    read at a limited rate: that one is told of no more, nothing waits for the text to free it."""
    turns: tuple[MessageSpan, ...] = ()
    """Of a chat, where an edit or a watch asks for roles or for what the template wrote; none otherwise."""
    reasoning: Reasoning | None = None
    """Tell what is thought from what is said, in this way; None: all is text."""
    sink_window: int | None = SINK_WINDOW
    """A sink is told by the median norm of so many of the prompt's first positions, which are run at once; None: of all
    of them, as in a log of before there was a window."""
    stop_when: StopWhen | None = None
    """End the text, with reason `feature`, once this holds at a generated token; its SAE is read as if watched."""
    forced: tuple[int, ...] | None = None
    """The tokens of an earlier answer, taken one by one in place of those that would be chosen (teacher forcing);
    the text ends with the last of them, with reason `length` unless that is an end token. `Token.scored` and `top`
    tell what the model made of each."""
    deterministic: bool = False
    """Run alone, the prefill unsplit, with kernels that always come to the same; `SAEUnsupportedError` where the
    model cannot be run so (`ModelFacts.can_be_deterministic`)."""

    @property
    def saes(self) -> tuple[ActiveSae, ...]:
        """All that the text needs on the device, each once or more."""
        stop = () if self.stop_when is None else (self.stop_when.sae,)
        needed = (watch.sae for watch in self.watched if watch.every_seconds is None)
        return (*self.intervention, *needed, *stop)


class ScoredToken(Struct, frozen=True, kw_only=True):
    """A token that could come next, and its log probability: log-softmax of the steered logits in float32, before
    temperature and top_p; −9999 for what the model rules out."""

    id: int
    text: str
    """As it is written, special tokens too; U+FFFD where it holds a part of a character."""
    bytes: bytes | None
    """None where a part of a character cannot be told in bytes."""
    logprob: float


class Token(Struct, frozen=True, kw_only=True):
    """One generated token: its id, and the text that became readable with it (may be empty)."""

    id: int
    text: str
    offset: int = 0
    """Characters of the answer that were complete before it."""
    reasoning: str = ""
    content: str = ""
    """Where `GenerationRequest.reasoning` tells them apart: what of the answer is thought, and what is said, that
    became readable with the token. Without the marks between them, which are in `text` too."""
    scored: ScoredToken | None = None
    """Where `GenerationRequest.logprobs` asks for it."""
    top: tuple[ScoredToken, ...] = ()
    """The most probable tokens, best first; the chosen one may be among them."""
    activations: tuple[Activations, ...] = ()
    """For each of `GenerationRequest.watched`, of the positions that were run to make this token: the whole prompt for
    the first one, then the token before. So the last token of a text is never read. In the order of `watched`; those
    that are read at a limited rate are left out where they were not."""


class Rest(Struct, frozen=True):
    """Text of an answer that no token brought: held back, when it was ended from outside, for what did not come."""

    text: str = ""
    reasoning: str = ""
    content: str = ""
    """As `Token` has them."""


class Finished(Struct, frozen=True, kw_only=True):
    """The end of a request; always the last item of the engine's stream."""

    reason: FinishReason
    receipt: Receipt
    token_ids: tuple[int, ...]
    """All generated ids, the end token counted."""
    text: str
    """The whole text, cut before a stop string."""
    rest: Rest = Rest()
    """Of that text what stands behind the last token's."""
    reasoning_tokens: int = 0
    """Those of what is thought, marks included."""
    edited: tuple[tuple[int, int], ...] = ()
    excluded: tuple[tuple[int, int], ...] = ()
    edited_sinks: tuple[tuple[int, int], ...] = ()
    """Of those that were written to, the attention sinks at the hook point."""
    error_code: str | None = None
    error_detail: str | None = None
    faulted: int | None = None
    """attach_position of the SAE whose hook failed, when reason is `error` for that cause."""
    batch: tuple[int, int] | None = None
    """Fewest and most texts in a step of this one, itself counted; None: it had no step."""


class GenerationItems(Protocol):
    """What a text delivers, one by one; closing it frees the text's place."""

    def __aiter__(self) -> AsyncIterator[Token | Finished]: ...

    async def __anext__(self) -> Token | Finished: ...

    def stop(self) -> None:
        """End the text after its step; its `Finished` still comes, with reason `cancelled` where it was not over
        before. Returns at once."""

    async def aclose(self) -> None: ...
