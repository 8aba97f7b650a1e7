"""The request for a generation, its tokens and its end."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, Struct, UnsetType

from ..domain.chats import MessageSpan, Reasoning
from ..domain.events import Receipt, Sampling
from ..domain.refs import SINK_WINDOW, ActiveSae, Exclusion, FinishReason, HookPoint, Intervention, StopWhen
from .reading import Pooled, Pooling, PositionDetails, TokenScore
from .scoring import PromptToken, ScoredToken, Scores, Scoring


class Tokenized(Struct, frozen=True, kw_only=True):
    """A prompt as the model sees it."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...] = ()
    """Text of each token; joined, they are the prompt."""
    special: tuple[bool, ...] = ()
    """For each token, whether it is a special one, such as the mark of a beginning, an end or a message."""
    turns: tuple[MessageSpan, ...] | None = ()
    """The spans of a chat's messages, in the order of its tokens. Messages that the template leaves out have none; a
    prompt that is not a chat has none either. None: the template does not show where they are."""
    reasoning: Reasoning | None = None
    """For a chat whose template marks reasoning: how its answer separates it."""


class FeatureActivation(Struct, frozen=True):
    """Activation of one feature at one position."""

    feature: int
    activation: float
    label: str | UnsetType = UNSET
    """Of the feature, if it has one; who shows the activation adds it."""


def labelled(row: tuple[FeatureActivation, ...], labels: Mapping[int, str]) -> tuple[FeatureActivation, ...]:
    """The activations with the labels of their features."""
    if not labels:
        return row
    return tuple(FeatureActivation(each.feature, each.activation, labels.get(each.feature, UNSET)) for each in row)


class Activations(Struct, frozen=True, kw_only=True):
    """An SAE's activations at positions `first`, `first` + 1, …, read from the activation that arrives at its hook
    point, before any edits there."""

    sae_id: str
    first: int
    rows: tuple[tuple[FeatureActivation, ...], ...]
    sinks: tuple[bool, ...]
    """For each position, whether it is an attention sink at the hook point."""
    excluded: tuple[bool, ...]
    """For each position, whether it is left out."""
    mean: tuple[float, ...] = ()
    """For `Watch.mean`: the mean activation over the positions that are not left out; zeros if all are."""
    norms: tuple[float, ...] = ()
    """For `Watch.mean`: |x| at each position."""
    pooled: Pooled | None = None
    """For `Watch.pooling`."""
    raw: bytes = b""
    """For `Watch.raw`: float32 [positions, width]."""
    lens: tuple[tuple[TokenScore, ...], ...] = ()
    """For `Watch.lens`: at each position the most probable tokens, best first."""


class Watch(Struct, frozen=True, kw_only=True):
    """An SAE whose activations are reported with a generation; it may be in the intervention too."""

    sae: ActiveSae
    """The attached SAE and its hook point; its mode and steering do not matter."""
    top_k: int | None = None
    """At most this many of the largest activations of each position, by magnitude, without zeros. None, with
    `features`: all of those features, in their order, zeros included."""
    features: tuple[int, ...] | None = None
    """Report only these features; None: all."""
    exclude: tuple[Exclusion, ...] = ()
    """Positions whose rows stay empty with `top_k`. `features` without `top_k` are reported for every position."""
    mean: bool = False
    """Of what arrives at the hook point of `sae` the mean, in place of what an SAE makes of it: `sae` is a place alone,
    see `at`."""
    raw: bool = False
    """What arrives at the hook point of `sae` itself; a place alone, as with `mean`."""
    lens: int | None = None
    """This many tokens that the model would think most probable if what leaves the hook point of `sae`, after any edits
    there, were the last block's result (softmax(W_U norm(x))); a place alone, as with `mean`."""
    pooling: Pooling | None = None
    """All features pooled over the positions that are not left out, in place of `top_k` and `features`."""
    every_seconds: float | None = None
    """Limits the rate: only the newest position of a step, at most this often, and nothing if the SAE is not there.
    None: all positions. Watches with a limit come last in `GenerationRequest.watched`."""

    @classmethod
    def at(cls, point: HookPoint, exclude: tuple[Exclusion, ...] = ()) -> Watch:
        """The mean activation there, whatever is attached."""
        return cls(sae=_place(point), mean=True, exclude=exclude)

    @classmethod
    def raw_at(cls, point: HookPoint) -> Watch:
        """The activation there at each position, whatever is attached."""
        return cls(sae=_place(point), raw=True)

    @classmethod
    def lens_at(cls, layer: int, top: int) -> Watch:
        """What the residual stream after a block says of the next token."""
        return cls(sae=_place(HookPoint("resid_post", layer)), lens=top)

    @property
    def of_place(self) -> bool:
        """It reads the model's own activation, not what an SAE makes of it."""
        return self.mean or self.raw or self.lens is not None


def _place(point: HookPoint) -> ActiveSae:
    return ActiveSae(sae_id="", weights_sha256="", hook_point=point)


class Grammar:
    """A JSON schema, compiled by an engine; opaque to everybody else."""


class GenerationRequest(Struct, frozen=True, kw_only=True):
    """One admitted generation: everything that the engine needs for it."""

    generation_id: str
    token_ids: tuple[int, ...]
    sampling: Sampling
    intervention: Intervention
    share: str = ""
    """Who asks. Of those that wait, one of each share begins in turn."""
    deadline_seconds: float = 600.0
    """For the text to wait for its first step, and again from there to its end."""
    logprobs: int | None = None
    """Score each token and this many of the most probable ones; None: no scores."""
    prompt_logprobs: int | None = None
    """The same for the given tokens, each after those before it; None: no scores."""
    scoring: Scoring | None = None
    """Score what is given, with `prompt_logprobs`, and generate nothing."""
    logprobs_of: tuple[int, ...] = ()
    """Score these tokens too, wherever one is generated."""
    watched: tuple[Watch, ...] = ()
    """SAEs to read. If one is removed, the generation ends, as for an SAE of the intervention. One with a limited rate
    is then only no longer reported, and freeing it does not wait for the generation."""
    details: tuple[Watch, ...] | None = None
    """Report what the intervention did at each position, and the features that these watches name, before and after:
    each names another SAE, and only its `sae` and `features` matter. SAEs without an encoder are passed over. None:
    report nothing of it."""
    turns: tuple[MessageSpan, ...] = ()
    """The chat's messages, if an edit or a watch needs roles or the template's tokens; otherwise empty."""
    reasoning: Reasoning | None = None
    """How to separate reasoning from content; None: all is text."""
    sink_window: int | None = SINK_WINDOW
    """A sink is identified by the median norm of this many of the prompt's first positions, which run in one step.
    None: of the whole prompt, as in older logs."""
    stop_when: StopWhen | None = None
    """End the generation, with reason `feature`, once this holds at a generated token; its SAE is read as if
    watched."""
    forced: tuple[int, ...] | None = None
    """The tokens of an earlier answer, used instead of sampled ones (teacher forcing). The generation ends with the
    last of them, with reason `length` unless that is an end token. `Token.scored` and `top` hold the model's scores."""
    processed_scores: bool = False
    """`Token.scored` and `top` are of the logits from which tokens are chosen: after penalties, bias and grammar."""
    grammar: Grammar | None = None
    """The grammar of `sampling.response_format`, from the engine's `grammar`."""
    alone: bool = False
    """Run alone, with the prefill in one step: what else runs changes no rounding."""
    background: bool = False
    """For a run: it waits until nothing else waits or runs, and stands still while something does. If that needs its
    memory, it ends with reason `cancelled`."""
    deterministic: bool = False
    """Run alone, with the prefill in one step and deterministic kernels. `SAEUnsupportedError` if the model cannot be
    run so (`ModelFacts.can_be_deterministic`)."""

    @property
    def given(self) -> tuple[int, ...]:
        """The tokens that are run before any is generated."""
        if self.scoring is None or not self.scoring.continuation:
            return self.token_ids
        more = self.scoring.continuation
        return (*self.token_ids, *(more if self.scoring.runs_last else more[:-1]))

    @property
    def saes(self) -> tuple[ActiveSae, ...]:
        """All SAEs that the generation needs on the device; one may occur several times."""
        stop = () if self.stop_when is None else (self.stop_when.sae,)
        needed = (watch.sae for watch in self.watched if watch.every_seconds is None and not watch.of_place)
        return (*self.intervention, *needed, *(watch.sae for watch in self.details or ()), *stop)


class Token(Struct, frozen=True, kw_only=True):
    """One generated token: its id, and the text that became readable with it (may be empty)."""

    id: int
    text: str
    offset: int = 0
    """How many characters of the answer were complete before it."""
    reasoning: str = ""
    content: str = ""
    """With `GenerationRequest.reasoning`: the reasoning and the content that became readable with the token, without
    the marks between them, which `text` includes."""
    scored: ScoredToken | None = None
    """Its own score, if `GenerationRequest.logprobs` is set."""
    top: tuple[ScoredToken, ...] = ()
    """The most probable tokens, best first; the chosen one may be among them."""
    named: tuple[ScoredToken, ...] = ()
    """Those of `GenerationRequest.logprobs_of`, in their order."""
    activations: tuple[Activations, ...] = ()
    """In the order of `GenerationRequest.watched`, at the positions that were run to make this token: the whole prompt
    for the first token, else the token before. So the last token is never read. A watch with a limited rate is left out
    of tokens for which it was not read."""
    details: tuple[PositionDetails, ...] = ()
    """With `GenerationRequest.details`: of the positions that were run to make this token, as with `activations`."""
    prompt: tuple[PromptToken, ...] = ()
    """The scores of the prompt, with the first token, if `GenerationRequest.prompt_logprobs` is set."""


class Rest(Struct, frozen=True):
    """Text of an answer that came with no token: held back for a possible stop string or a complete character, when the
    generation was ended from outside."""

    text: str = ""
    reasoning: str = ""
    content: str = ""
    """`reasoning` and `content` are those of `Token`."""


class Finished(Struct, frozen=True, kw_only=True):
    """The end of a generation; always the last item of the engine's stream."""

    reason: FinishReason
    receipt: Receipt
    token_ids: tuple[int, ...]
    """All generated ids, the end token counted; of a text that is scored, its continuation."""
    text: str
    """The whole text, cut before a stop string."""
    rest: Rest = Rest()
    """The end of that text, which came with no token."""
    reasoning_tokens: int = 0
    """How many tokens the reasoning has, marks included."""
    prompt: tuple[PromptToken, ...] = ()
    """As with the first token, since there may be none (`Sampling.max_tokens` 0); with a continuation, its tokens too.
    Empty if the prompt was not run to its end."""
    scores: Scores | None = None
    """With `GenerationRequest.scoring`, if all of it was run."""
    activations: tuple[Activations, ...] = ()
    """Those of the prompt, as a first token has them, if no token was to be made."""
    details: tuple[PositionDetails, ...] = ()
    """Of the positions that were run and came with no token: all of them, if no token was to be made."""
    edited: tuple[tuple[int, int], ...] = ()
    excluded: tuple[tuple[int, int], ...] = ()
    edited_sinks: tuple[tuple[int, int], ...] = ()
    """Edited positions that are attention sinks at the hook point."""
    error_code: str | None = None
    error_detail: str | None = None
    faulted: int | None = None
    """attach_position of the SAE whose hook failed, if that is why reason is `error`."""
    batch: tuple[int, int] | None = None
    """The fewest and the most generations in one of its steps, itself counted; None: it had no step."""
