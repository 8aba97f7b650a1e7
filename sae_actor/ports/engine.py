"""The device: one model, the SAEs on it, text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from ..domain.chats import Tokenization
from ..domain.effects import AttachEffect, DetachEffect, LoadModelEffect, Residents
from ..domain.refs import Edit, ModelFacts
from ..domain.reports import AttachedSae
from .generation import GenerationRequest, Grammar, Tokenized
from .generation_stream import GenerationStream
from .progress import OnProgress


class ModelSize(Struct, frozen=True, kw_only=True):
    """What a model would take on a device, from its settings alone."""

    model: str
    model_type: str
    dtype: str
    device: str
    quantization: str | None = None
    """The scheme of the weights; None: plain numbers of `dtype`."""
    weights_bytes: int
    kv_bytes_per_token: int
    state_bytes: int
    """Of one text, however long: states of linear attention."""
    context_length: int
    free_bytes: int | None
    """On the device, once everything that the engine holds is gone; None: not known."""
    max_context: int
    """Positions that one text could have; 0: none fits."""


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
    """One feature: from the SAE's weights, the model's unembedding, and what its folder records."""

    feature: int
    decoder_norm: float
    """|d| of the effective decoder row, except for a scale that changes from token to token."""
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


class TokenizerInfo(Struct, frozen=True, kw_only=True):
    """A tokenizer under the names of its `tokenizer_config.json`."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    additional_special_tokens: tuple[str, ...]
    add_bos_token: bool
    """A text gets the BOS token."""
    chat_template: str | None
    model_max_length: int
    """Tokens of the model's context."""
    vocab_size: int
    """Ids that the model can be fed."""


class Engine(Protocol):
    """The device: one model, the SAEs on it, text. Raises errors of `errors` only.

    The event loop is never blocked: everything that runs or changes the model happens on the engine's thread.
    """

    async def load_model(self, effect: LoadModelEffect, progress: OnProgress) -> ModelFacts:
        """Load (and keep) the model; a model already there for another request is dropped first.

        Cancelling drops what was loaded so far. Raises `ModelNotFoundError`, `ModelLoadError`, `OutOfMemoryError`.
        """

    async def model_size(
        self, model: str, revision: str, dtype: str, device: str, beside: int, *, quantization: str | None = None
    ) -> ModelSize:
        """What that model would take here, next to so many bytes of SAEs; its weights are not fetched. Raises
        `ModelNotFoundError`, `ModelLoadError`."""

    async def attach(self, effect: AttachEffect, folder: str) -> AttachedSae:
        """Bring the SAE in `folder` to the device, checked and ready; a failure or a cancel leaves nothing on the
        device."""

    async def detach(self, effect: DetachEffect, drain_seconds: float) -> int:
        """Free the SAE when its last request ended, or after `drain_seconds`, when those requests end with
        `intervention_removed`. The bytes freed; 0 when it is not there."""

    def retain(self, residents: Residents) -> None:
        """Free everything that is not named: an unloaded model, a replaced SAE. Returns at once;
        requests under what is freed end as `detach` says (a model: with `error`)."""

    async def raw(self, attach_position: int, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        """The edits with strengths in other units resolved to raw ones, for the SAE that is there.

        `BadRequestError` for a unit of a strength that has none, `SAEUnsupportedError` where a statistic is missing or
        a strength is beyond what the types of model and SAE hold (with `feature`, `strength`, `limit`),
        `SAEInvalidError` if the SAE's statistics cannot be read, `SAENotAttachedError` without an SAE.
        """

    async def feature(self, attach_position: int, feature: int) -> FeatureDetails:
        """Look at a feature of the SAE that is there.

        `FeatureOutOfRangeError`, `SAENotAttachedError`, `SAEInvalidError` as in `raw`.
        """

    async def tokenize(
        self,
        prompt: str | Sequence[dict[str, str]] | Sequence[int],
        how: Tokenization | None = None,
        *,
        any_length: bool = False,
    ) -> Tokenized:
        """Text, chat messages (through the model's template, with the answer opened) or ids as token ids.

        Messages are text, even if they spell a control token; for a prompt `how` decides. A prompt that begins with BOS
        gets no second one. `BadRequestError` for an empty prompt that
        nothing is put before, an id outside the vocabulary, a chat without a template, or `prepend_bos` for ids or
        without a BOS token. any_length: for counting, not to be run: no token at all is fine, and so are more than the
        context holds, of which `tokens` and `turns` are left out.
        """

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones as they are written. `BadRequestError` for an id outside the vocabulary."""

    async def tokenizer_info(self) -> TokenizerInfo:
        """What is known of the model's tokenizer."""

    async def grammar(self, schema: str) -> Grammar:
        """Compile a JSON schema, given as JSON, for texts of the model that is there; kept for the next time.

        `BadRequestError` with the reason if the texts that follow it have no grammar, `SAEUnsupportedError` if the
        model's tokenizer allows none.
        """

    def generate(self, request: GenerationRequest) -> GenerationStream:
        """Tokens as they are made, then one `Finished`. Closing the stream frees the request's slot."""

    async def close(self) -> None:
        """Stop the thread and free the device."""
