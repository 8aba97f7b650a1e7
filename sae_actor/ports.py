"""Every edge of the service as a Protocol; one contract suite per port runs against fake and real adapter.

`eventlog`, `hub` and `engine` implement these; `actor` and `api` know nothing else of the world.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct

from .domain.effects import (
    AttachEffect,
    DeleteEffect,
    DetachEffect,
    DownloadEffect,
    ImportEffect,
    LoadModelEffect,
    Residents,
    SaeLocation,
)
from .domain.events import Draft, Event, Receipt, Sampling
from .domain.refs import (
    ActiveSae,
    Edit,
    FinishReason,
    Intervention,
    ModelFacts,
    SaeDescription,
    SaeFile,
    StopWhen,
    Turn,
)

Progress = Callable[[str, dict[str, Any]], None]
"""progress("download_progress", {...}): may be dropped, is not logged, does not raise, works from any thread."""


class Clock(Protocol):
    def now(self) -> str:
        """Wall time, RFC 3339 UTC with microseconds (`2026-01-31T12:00:00.000000Z`)."""

    def monotonic(self) -> float:
        """Seconds that never go back."""


class Head(Struct, frozen=True):
    """The last event of a log: its position (0: none yet) and hash (of an empty log: its genesis)."""

    position: int
    hash: str


class Verification(Struct, frozen=True, omit_defaults=True):
    """What `log verify` says."""

    ok: bool
    events: int
    head: Head
    first_bad: int | None = None
    detail: str | None = None
    clock_skew: tuple[int, ...] = ()
    """Events whose time is before that of the event before them: the clock went back. No damage, since positions alone
    order a log; the first hundred."""


class EventLog(Protocol):
    """An append-only, hash-chained sequence of events, positions 1, 2, 3, … without a gap."""

    @property
    def log_id(self) -> str:
        """32 hex digits, chosen when the log was made; its first 8 mark the ids of the stream."""

    @property
    def head(self) -> Head:
        """The last durable event."""

    async def append(self, drafts: Sequence[Draft], *, expected: int) -> tuple[Event, ...]:
        """Store all drafts in one transaction behind position `expected`, durable when this returns.

        Raises `LogConflictError` if the head is elsewhere, `DiskFullError` when there is no space (nothing
        stored), `LogError` after an I/O failure (the log takes no further append: stop the service).
        A cancelled caller changes nothing: the append completes, or was never begun.
        """

    async def read(self, after: int = 0, limit: int = 500, types: Sequence[str] | None = None) -> list[Event]:
        """At most `limit` events with position above `after`, in order."""

    async def of_command(self, command_id: str) -> list[Event]:
        """All events of one command, in order (few)."""

    async def verify(self) -> Verification:
        """Walk the whole chain."""

    async def close(self) -> None: ...


class HubSae(Struct, frozen=True, kw_only=True):
    """What the hub adapter knows of an SAE whose files are complete and verified."""

    commit: str | None
    files: tuple[SaeFile, ...]
    sae: SaeDescription
    weights_sha256: str


class CatalogEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One SAE inside a repository, seen from its file list and small config files alone."""

    path: str
    """What `Download.path` takes; empty for an SAE at the root of the repository (`Download.path` null)."""
    format: str
    file_size_bytes: int
    d_in: int | None = None
    d_sae: int | None = None
    hook_name: str | None = None


class Hub(Protocol):
    """SAEs on disk: fetched from a hub, imported, found again, deleted. Raises errors of `errors` only."""

    async def download(self, effect: DownloadEffect, progress: Progress) -> HubSae:
        """Fetch exactly one SAE. Cancelling ends the child process before the await returns."""

    async def resolve_import(self, path: str) -> str:
        """The resolved folder, if it lies under an import root; `ForbiddenError` / `NotFoundError` otherwise."""

    async def import_(self, effect: ImportEffect) -> HubSae:
        """Describe and digest a folder that is on disk already; nothing is copied."""

    async def locate(self, location: SaeLocation) -> str:
        """The folder (or file) to load the SAE from, its files checked against their sizes and digests.

        `SAEInvalidError` where one is gone or differs.
        """

    async def delete(self, effect: DeleteEffect) -> int:
        """Delete the files (of an import: nothing); the bytes really freed. Deleting what is gone frees 0."""

    async def discard(self, effect: DownloadEffect) -> None:
        """Remove what an unfinished, cancelled download left on disk."""

    async def catalog(self, repository_id: str, revision: str = "main") -> list[CatalogEntry]:
        """The SAEs of a repository before a byte of their weights is fetched, ordered by path."""

    async def disk_use(self) -> int:
        """Bytes of everything that was downloaded, finished or not."""

    async def close(self) -> None: ...


class AttachedSae(Struct, frozen=True, kw_only=True):
    """What the engine measured when an SAE came to the device."""

    memory_bytes: int
    device_bytes: int
    dtype: str


class Watch(Struct, frozen=True, kw_only=True):
    """An SAE whose activations are told with a text; it may be in the intervention too."""

    sae: ActiveSae
    """Which resident, and where; its mode and steering are not asked for."""
    top_k: int | None = None
    """So many of the largest activations of each position, by magnitude, those that are not 0; None, with
    `features`: every one of those, in their order, also where it is 0."""
    features: tuple[int, ...] | None = None
    """Only of these; None: of all."""
    every_seconds: float | None = None
    """Told at most so often, of the newest position of a step alone, and left out of the other tokens, or all of them
    where the SAE is not there; None: of all positions. Such ones stand last in `TextRequest.watched`."""


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


class NearFeature(Struct, frozen=True):
    """A feature whose decoder row points the same way."""

    feature: int
    cosine: float


class TokenWeight(Struct, frozen=True):
    """What one unit of a feature adds to a token's logit, the final norm left out."""

    token_id: int
    token: str
    weight: float


class FeatureDetails(Struct, frozen=True, kw_only=True):
    """One feature, told by the SAE's weights, the model's unembedding, and what its folder records."""

    feature: int
    decoder_norm: float
    """|d| of the effective decoder row, but for a scale that changes from token to token."""
    bias: float | None
    """Of the encoder; None where it has none."""
    threshold: float | None
    nearest: tuple[NearFeature, ...] = ()
    """Best first."""
    promoted: tuple[TokenWeight, ...] = ()
    suppressed: tuple[TokenWeight, ...] = ()
    """Strongest first; none where the SAE does not write into the residual stream."""
    label: str | None = None
    max_activation: float | None = None
    density: float | None = None
    top_tokens: tuple[str, ...] = ()


class TextRequest(Struct, frozen=True, kw_only=True):
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
    turns: tuple[Turn, ...] = ()
    """Of a chat, where an edit asks for roles or for what the template wrote; none otherwise."""
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
    scored: ScoredToken | None = None
    """Where `TextRequest.logprobs` asks for it."""
    top: tuple[ScoredToken, ...] = ()
    """The most probable tokens, best first; the chosen one may be among them."""
    activations: tuple[Activations, ...] = ()
    """For each of `TextRequest.watched`, of the positions that were run to make this token: the whole prompt for the
    first one, then the token before. So the last token of a text is never read. In the order of `watched`; those that
    are read at a limited rate are left out where they were not."""


class Finished(Struct, frozen=True, kw_only=True):
    """The end of a request; always the last item of the engine's stream."""

    reason: FinishReason
    receipt: Receipt
    token_ids: tuple[int, ...]
    """All generated ids, the end token counted."""
    text: str
    """The whole text, cut before a stop string."""
    edited: tuple[tuple[int, int], ...] = ()
    excluded: tuple[tuple[int, int], ...] = ()
    error_code: str | None = None
    error_detail: str | None = None
    faulted: int | None = None
    """attach_position of the SAE whose hook failed, when reason is `error` for that cause."""
    batch: tuple[int, int] | None = None
    """Fewest and most texts in a step of this one, itself counted; None: it had no step."""


class Tokenized(Struct, frozen=True, kw_only=True):
    """A prompt as the model sees it."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...] = ()
    """Text of each token, which joined are the prompt."""
    special: tuple[bool, ...] = ()
    """Which tokens are special ones of the tokenizer, such as marks of beginning, end and turns."""
    turns: tuple[Turn, ...] | None = ()
    """The messages of a chat, in order; none of a text that is no chat. None: the template does not tell."""


class TextItems(Protocol):
    """What a text delivers, one by one; closing it frees the text's place."""

    def __aiter__(self) -> AsyncIterator[Token | Finished]: ...

    async def __anext__(self) -> Token | Finished: ...

    async def aclose(self) -> None: ...


class Engine(Protocol):
    """The device: one model, the SAEs on it, text. Raises errors of `errors` only.

    The event loop is never blocked: everything that runs or changes the model happens on the engine's thread.
    """

    async def load_model(self, effect: LoadModelEffect, progress: Progress) -> ModelFacts:
        """Load (and keep) the model; a model already there for another request is dropped first.

        Cancelling drops what was loaded so far. Raises `ModelNotFoundError`, `ModelLoadError`, `OutOfMemoryError`.
        """

    async def attach(self, effect: AttachEffect, folder: str) -> AttachedSae:
        """Bring the SAE in `folder` to the device, checked and ready; a failure or a cancel leaves nothing behind."""

    async def detach(self, effect: DetachEffect, drain_seconds: float) -> int:
        """Free the SAE when its last request ended, or after `drain_seconds`, when those requests end with
        `intervention_removed`. The bytes freed; 0 when it is not there."""

    def retain(self, residents: Residents) -> None:
        """Free everything that is not named: an unloaded model, a replaced SAE. Returns at once;
        requests under what is freed end as `detach` says (a model: with `error`)."""

    async def raw(self, attach_position: int, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        """The edits with strengths in other units resolved to raw ones, for the SAE that is there.

        `BadRequestError` for a unit of a strength that has none, `SAEUnsupportedError` where a statistic is missing,
        `SAEInvalidError` where the SAE's statistics cannot be read, `SAENotAttachedError` where there is no SAE.
        """

    async def feature(self, attach_position: int, feature: int) -> FeatureDetails:
        """Look at a feature of the SAE that is there.

        `FeatureOutOfRangeError`, `SAENotAttachedError`, `SAEInvalidError` as in `raw`.
        """

    async def tokenize(self, prompt: str | Sequence[dict[str, str]] | Sequence[int]) -> Tokenized:
        """Text, chat messages (through the model's template, with the answer opened) or ids as token ids.

        `BadRequestError` for an empty prompt, an id outside the vocabulary, a chat without a template.
        """

    def generate(self, request: TextRequest) -> TextItems:
        """Tokens as they are made, then one `Finished`. Closing the iterator frees the request's slot."""

    async def close(self) -> None:
        """Stop the thread and free the device."""


HealthState = Literal["ok", "degraded", "not_ready"]
