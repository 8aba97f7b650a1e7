"""The request for a generation, and what it delivers."""

from __future__ import annotations

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
    a prompt that is not a chat. None: the template does not show them."""
    reasoning: Reasoning | None = None
    """For a chat whose template marks reasoning: how its answer separates it."""


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
    """An SAE whose activations are reported with a generation; it may be in the intervention too."""

    sae: ActiveSae
    """Which resident, and where; its mode and steering do not matter."""
    top_k: int | None = None
    """At most this many of the largest activations of each position, by magnitude, without zeros. None, with
    `features`: every one of those, in their order, zeros included."""
    features: tuple[int, ...] | None = None
    """Only of these; None: of all."""
    exclude: tuple[Exclusion, ...] = ()
    """Positions whose rows stay empty with `top_k`. `features` without `top_k` are reported for every position."""
    every_seconds: float | None = None
    """Limits the rate: only the newest position of a step, at most this often, and nothing if the SAE is not there.
    None: all positions. Limited ones come last in `GenerationRequest.watched`."""


class Grammar:
    """What an engine compiled a JSON schema to: only the engine knows more of it."""


class GenerationRequest(Struct, frozen=True, kw_only=True):
    """One admitted request: everything the engine needs, frozen."""

    generation_id: str
    token_ids: tuple[int, ...]
    sampling: Sampling
    intervention: Intervention
    deadline_seconds: float = 600.0
    """For the text to wait for its first step, and again from there to its end."""
    logprobs: int | None = None
    """Score each token and this many of the most probable ones; None: no scores."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens, each given those before it."""
    watched: tuple[Watch, ...] = ()
    """SAEs to read. A missing one ends the generation as one of the intervention does, unless its rate is limited: then
    it is no longer reported, and freeing it does not wait for the generation."""
    turns: tuple[MessageSpan, ...] = ()
    """The chat's messages, if an edit or a watch needs roles or the template's tokens; otherwise empty."""
    reasoning: Reasoning | None = None
    """How to separate reasoning from content; None: all is text."""
    sink_window: int | None = SINK_WINDOW
    """A sink is identified by the median norm of this many of the prompt's first positions, which run in one step.
    None: of the whole prompt, as in older logs."""
    stop_when: StopWhen | None = None
    """End the text, with reason `feature`, once this holds at a generated token; its SAE is read as if watched."""
    forced: tuple[int, ...] | None = None
    """The tokens of an earlier answer, used instead of sampled ones (teacher forcing). The generation ends with the
    last of them, with reason `length` unless that is an end token. `Token.scored` and `top` hold the model's scores of
    each."""
    processed_scores: bool = False
    """`Token.scored` and `top` are of the logits after penalties, bias and grammar, as tokens are chosen from them."""
    grammar: Grammar | None = None
    """Of `sampling.response_format`, from the engine's `grammar`."""
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
    """None if the bytes of a partial character are unknown."""
    logprob: float


class PromptToken(Struct, frozen=True, kw_only=True):
    """A token of the prompt, scored as `ScoredToken` says; the logits are those under the intervention."""

    id: int
    text: str
    bytes: bytes | None
    logprob: float | None
    """None: of the first one, before which there is nothing."""
    top: tuple[ScoredToken, ...] = ()
    """The most probable tokens there, best first; one that is this token has the same `logprob`."""


class Token(Struct, frozen=True, kw_only=True):
    """One generated token: its id, and the text that became readable with it (may be empty)."""

    id: int
    text: str
    offset: int = 0
    """Characters of the answer that were complete before it."""
    reasoning: str = ""
    content: str = ""
    """With `GenerationRequest.reasoning`: the reasoning and the content that became readable with the token, without
    the marks between them, which `text` includes."""
    scored: ScoredToken | None = None
    """If `GenerationRequest.logprobs` is set."""
    top: tuple[ScoredToken, ...] = ()
    """The most probable tokens, best first; the chosen one may be among them."""
    activations: tuple[Activations, ...] = ()
    """For each of `GenerationRequest.watched`, of the positions that were run to make this token: the whole prompt for
    the first one, then the token before. So the last token of a text is never read. In the order of `watched`; those
    that are read at a limited rate are left out where they were not."""
    prompt: tuple[PromptToken, ...] = ()
    """With the first token, if `GenerationRequest.prompt_logprobs` is set."""


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
    """The end of that text, after the last token's."""
    reasoning_tokens: int = 0
    """Tokens of the reasoning, marks included."""
    prompt: tuple[PromptToken, ...] = ()
    """As the first token has it; there may be none (`Sampling.max_tokens` 0). None of it if the prompt was not run
    to its end."""
    activations: tuple[Activations, ...] = ()
    """Where no token was to be made: those of the prompt, as a first token has them."""
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
