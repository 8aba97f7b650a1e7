"""The device: one model, the SAEs on it, generations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from ..domain.chats import Tokenization
from ..domain.effects import AttachEffect, DetachEffect, LoadModelEffect, Residents
from ..domain.refs import Edit, ModelFacts
from ..domain.reports import AttachedSae
from ..domain.state import SaeLocation
from .generation import GenerationRequest, Grammar, Tokenized
from .generation_stream import GenerationStream
from .measuring import ComparedRows, EvaluatedGroup, ProfiledFeatures, ReadGroup, TextGroup
from .progress import OnProgress


class ModelSize(Struct, frozen=True, kw_only=True):
    """The memory that a model would need on a device, from its settings alone."""

    model: str
    model_type: str
    dtype: str
    device: str
    quantization: str | None = None
    """The scheme of the weights; None: plain numbers of `dtype`."""
    weights_bytes: int
    kv_bytes_per_token: int
    state_bytes: int
    """Bytes per generation, whatever its length: states of linear attention, and the copy that a step works on."""
    context_length: int
    free_bytes: int | None
    """Free on the device once the engine has freed everything it holds; None: not known."""
    max_context: int
    """How many positions one generation could have; 0: none fits."""


class NearFeature(Struct, frozen=True):
    """A feature whose decoder row points the same way."""

    feature: int
    cosine: float


class TokenWeight(Struct, frozen=True):
    """How much one unit of a feature adds to a token's logit, without the final norm."""

    token_id: int
    token: str
    weight: float


class FeatureDetails(Struct, frozen=True, kw_only=True):
    """One feature: from the SAE's weights, the model's unembedding, and the statistics in the SAE's folder."""

    feature: int
    decoder_norm: float
    """|d| of the effective decoder row, except for a scale that changes from token to token."""
    bias: float | None
    """The encoder's bias; None if it has none."""
    threshold: float | None
    nearest: tuple[NearFeature, ...] = ()
    """Best first."""
    promoted: tuple[TokenWeight, ...] = ()
    suppressed: tuple[TokenWeight, ...] = ()
    """Strongest first; empty if the SAE does not write into the residual stream."""
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
    """Whether a text gets the BOS token."""
    chat_template: str | None
    model_max_length: int
    """How many tokens the model's context holds."""
    vocab_size: int
    """How many token ids are valid."""


class Engine(Protocol):
    """The device: one model, the SAEs on it, generations. Raises only errors of `errors`.

    The event loop is never blocked: everything that runs or changes the model happens on the engine's thread.
    """

    async def load_model(self, effect: LoadModelEffect, progress: OnProgress) -> ModelFacts:
        """Load (and keep) the model; a model loaded for another request is dropped first.

        Cancelling drops everything loaded so far. Raises `ModelNotFoundError`, `ModelLoadError`, `OutOfMemoryError`.
        """

    async def model_size(
        self, model: str, revision: str, dtype: str, device: str, reserved: int, *, quantization: str | None = None
    ) -> ModelSize:
        """The memory that a model would need here; its weights are not fetched. reserved: bytes that other things, such
        as SAEs, will take. Raises `ModelNotFoundError`, `ModelLoadError`."""

    async def attach(self, effect: AttachEffect, folder: str) -> AttachedSae:
        """Check the SAE in `folder` and put it on the device. After a failure or a cancel nothing stays on the
        device."""

    async def detach(self, effect: DetachEffect, drain_seconds: float) -> int:
        """Free the SAE once the generations that use it have ended. After `drain_seconds` it ends those that are left,
        with reason `intervention_removed`. The bytes freed; 0 if it is not there."""

    def retain(self, residents: Residents) -> None:
        """Free everything else: an unloaded model, a replaced SAE. Returns at once. Generations that use a freed SAE
        end as `detach` says; those of a freed model end with `error`."""

    async def raw(
        self, attach_position: int, edits: tuple[Edit, ...], profiled: ProfiledFeatures | None = None
    ) -> tuple[Edit, ...]:
        """The edits with raw strengths, converted from other units with the statistics of the attached SAE; where its
        files have none, with those of a profile.

        `BadRequestError` for a unit that the method does not have, `SAEUnsupportedError` if a statistic is missing or
        a strength is too large for the types of model and SAE (with `feature`, `strength`, `limit`), `SAEInvalidError`
        if the SAE's statistics cannot be read, `SAENotAttachedError` without an SAE.
        """

    async def raw_on_disk(self, location: SaeLocation, folder: str, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        """As `raw` for an SAE that is not attached, in `folder`: at the hook point where it was trained, and for no
        types in particular. Raises what loading it raises too."""

    async def feature(self, attach_position: int, feature: int) -> FeatureDetails:
        """Details of a feature of an attached SAE.

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
        gets no second one. `BadRequestError` for a prompt without any token, an id outside the vocabulary, a chat
        without a template, or `prepend_bos` for ids or without a BOS token.

        any_length: only count the tokens, which are not run: then the prompt may be empty or longer than the context,
        for which `tokens` and `turns` are left out.
        """

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones as they are written. `BadRequestError` for an id outside the vocabulary."""

    async def tokenizer_info(self) -> TokenizerInfo:
        """The facts about the model's tokenizer."""

    async def grammar(self, schema: str) -> Grammar:
        """Compile a JSON schema, given as JSON, for the loaded model; it is kept for the next time.

        `BadRequestError` with the reason if no grammar can be made of it, `SAEUnsupportedError` if the
        model's tokenizer allows none.
        """

    def limit(self, running: Mapping[str, int]) -> None:
        """From now on at most so many texts of a share (`GenerationRequest.share`) run at a time, those that wait now
        included; shares that are not named have no limit of their own. What runs goes on. One text that is scored
        under several interventions counts once."""

    def generate(self, request: GenerationRequest) -> GenerationStream:
        """Tokens as they are made, then one `Finished`. Closing the stream frees the generation's slot."""

    def score(
        self, requests: Sequence[GenerationRequest], *, baseline: int | None = None
    ) -> tuple[GenerationStream, ...]:
        """Score one text under several interventions; a stream each, without tokens. The requests have `scoring`, and
        differ in their interventions and in `deterministic` alone. Equal ones are computed once.

        baseline: index of the one that `Scores.kl` compares the others with. `BadRequestError` if two of them do not
        fit into the memory side by side, as they must then; else raises as `generate`.
        """

    async def evaluate(self, group: TextGroup) -> EvaluatedGroup:
        """Run each text three times: as it is, with the SAE's output in place of what it should give, and with zeros
        there; excluded positions pass unchanged. One forward pass at a time, and only while nothing is generated.

        `SAENotAttachedError` if the SAE is not there (any more), `ModelNotLoadedError`, `SAEUnsupportedError` for
        vectors. Cancelling ends it after the current pass.
        """

    async def read_group(self, group: TextGroup) -> ReadGroup:
        """What the SAE reads in each text; else as `evaluate`."""

    async def compare_rows(self, attach_position: int) -> ComparedRows:
        """What the SAE's weights say of each feature; waits for texts as `evaluate` does. `SAENotAttachedError`,
        `SAEUnsupportedError` for vectors."""

    async def close(self) -> None:
        """Stop the thread and free the device."""
