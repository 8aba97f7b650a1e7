"""An engine without torch: the port's behaviour, with texts as `text` makes them.

Tests turn its knobs: pauses, gates and failures; `calls` records what was asked of it, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from sae_actor.domain.chats import Reasoning
from sae_actor.domain.effects import AttachEffect, DetachEffect, LoadModelEffect, Residents
from sae_actor.domain.refs import Edit, ModelFacts, SaeDescription
from sae_actor.domain.state import SaeLocation
from sae_actor.errors import (
    BadRequestError,
    FeatureOutOfRangeError,
    MailboxFullError,
    ModelNotFoundError,
    SAEError,
    SAEIncompatibleError,
    SAENotAttachedError,
    SAEUnsupportedError,
)
from sae_actor.limits import FairQueue
from sae_actor.ports import (
    AttachedSae,
    ComparedRows,
    EvaluatedGroup,
    FeatureDetails,
    GenerationRequest,
    Grammar,
    ModelSize,
    NearFeature,
    OnProgress,
    ProfiledFeatures,
    Progress,
    ReadGroup,
    TextGroup,
    TokenWeight,
)
from tests.fakes.choosing import grammars
from tests.fakes.measuring import compared, evaluated, read
from tests.fakes.text import END, RunningText, edits_apart
from tests.fakes.tokenizing import VOCABULARY, FakeTokenizing


@dataclass
class FakeEngine(FakeTokenizing):
    """Implements `sae_actor.ports.Engine`; every pause is 0 and nothing fails until told."""

    num_layers: int = 4
    hidden_size: int = 16
    context_length: int = 256
    cache_positions: int | None = None
    in_turn: str | None = None
    """Why texts run one after the other, for the model's facts; here they never do."""
    has_chat_template: bool = True
    tells_messages: bool = True
    adds_bos: bool = False
    """The token that ends a text begins every one; else those alone for which it is asked."""
    max_running: int = 4
    max_waiting: int = 1024
    drain_seconds: float = 3.0
    """For SAEs that `retain` drops."""

    missing: frozenset[str] = frozenset({"none/such"})
    """Models that no hub has."""
    load_seconds: float = 0.0
    attach_seconds: float = 0.0
    step_seconds: float = 0.0
    """Pause before each token."""
    load_gate: asyncio.Event | None = None
    attach_gate: asyncio.Event | None = None
    text_gate: asyncio.Event | None = None
    """Where set: wait for the event before going on (text: before each token)."""
    measure_seconds: float = 0.0
    measure_gate: asyncio.Event | None = None
    """The same for each group that is measured."""
    load_error: SAEError | None = None
    attach_error: SAEError | None = None
    faults: dict[int, int] = field(default_factory=dict)
    """attach_position → number of tokens after which its hook fails."""
    maxima: dict[int, float] = field(default_factory=dict)
    median_norm: float | None = None
    """What is recorded of its SAEs."""
    ends_after: int | None = None
    """The model ends its text with the end token after so many tokens."""
    script: Sequence[int] | None = None
    """What the model says, token by token, and then the end token; None: letters."""
    specials: Sequence[str] = ()
    """Special tokens behind the end token, as they are written."""
    reasoning: Reasoning | None = None
    """How its chats separate reasoning."""

    calls: list[tuple[str, int]] = field(default_factory=list)
    model: ModelFacts | None = None
    model_position: int | None = None
    residents: dict[int, tuple[AttachEffect, AttachedSae]] = field(default_factory=dict)
    closed: bool = False
    _streams: set[RunningText] = field(default_factory=set)
    _having_turns: list[tuple[str, object]] = field(default_factory=list)
    """Share of each, and what it runs beside."""
    _waiting: FairQueue[tuple[object, asyncio.Future[None]]] = field(default_factory=FairQueue)
    _most: Mapping[str, int] = field(default_factory=dict)
    _grammars: Any = None
    _drains: set[asyncio.Task[None]] = field(default_factory=set)

    async def load_model(self, effect: LoadModelEffect, progress: OnProgress) -> ModelFacts:
        self.calls.append(("load_model", effect.request_position))
        if self.model is not None and self.model_position == effect.request_position:
            return self.model
        self._drop_model()
        await _pause(self.load_seconds, self.load_gate)
        progress(Progress(kind="load", subject=effect.model, phase="loading"))
        if effect.model in self.missing:
            raise ModelNotFoundError(f"no model {effect.model}", model=effect.model)
        if self.load_error is not None:
            raise self.load_error
        width = self.hidden_size
        widths = dict.fromkeys(
            ("resid_pre", "resid_mid", "resid_post", "attn_out", "attn_z", "mlp_in", "mlp_out"), width
        )
        environment: dict[str, object] = {"engine": "fake"}
        if effect.quantization is not None:
            environment["quantization"] = {"scheme": effect.quantization}
        self.model = ModelFacts(
            model_id=effect.model,
            revision=effect.revision,
            commit=None if effect.model.startswith("/") else "0" * 40,
            model_type="fake",
            dtype="float32" if effect.dtype == "auto" else effect.dtype,
            device="cpu" if effect.device == "auto" else effect.device,
            num_layers=self.num_layers,
            hidden_size=width,
            context_length=self.context_length,
            cache_positions=self.cache_positions,
            memory_bytes=4 * width * VOCABULARY,
            widths={**widths, "mlp_act": 4 * width},
            before={"mlp_in": ("gain", "norm")},
            has_chat_template=self.has_chat_template,
            adds_bos=False,
            tells_messages=self.tells_messages,
            environment=environment,
            vocabulary=self.vocabulary,
            end_ids=(END,),
            in_turn=self.in_turn,
        )
        self.model_position = effect.request_position
        return self.model

    async def model_size(
        self, model: str, revision: str, dtype: str, device: str, reserved: int, *, quantization: str | None = None
    ) -> ModelSize:
        self.calls.append(("model_size", reserved))
        if model in self.missing:
            raise ModelNotFoundError(f"no model {model}", model=model)
        return ModelSize(
            model=model,
            model_type="fake",
            dtype="float32" if dtype == "auto" else dtype,
            device="cpu" if device == "auto" else device,
            quantization=quantization,
            weights_bytes=(4 if quantization is None else 1) * self.hidden_size * VOCABULARY,
            kv_bytes_per_token=8 * self.hidden_size * self.num_layers,
            state_bytes=0,
            context_length=self.context_length,
            free_bytes=10**9,
            max_context=self.context_length,
        )

    async def attach(self, effect: AttachEffect, folder: str) -> AttachedSae:
        self.calls.append(("attach", effect.request_position))
        if not folder:
            raise ValueError("a folder is needed")
        if effect.request_position in self.residents:
            return self.residents[effect.request_position][1]
        model = self._loaded()
        await _pause(self.attach_seconds, self.attach_gate)
        if self.attach_error is not None:
            raise self.attach_error
        width = model.widths.get(effect.hook_point.kind)
        if width != effect.sae.d_in:
            raise SAEIncompatibleError(
                f"the SAE reads {effect.sae.d_in} values, the model has {width} at {effect.hook_point}",
                sae_d_in=effect.sae.d_in,
                model_d=width,
            )
        for point in (effect.hook_point, effect.hook_point_out or effect.hook_point):
            if point.before is not None and point.before not in model.before.get(point.kind, ()):
                raise SAEIncompatibleError(f"the model has no hook point {point}", hook_point=str(point))
        size = effect.sae.memory_bytes(effect.dtype)
        attached = AttachedSae(memory_bytes=size, device_bytes=size, dtype=effect.dtype)
        self.residents[effect.request_position] = (effect, attached)
        return attached

    async def detach(self, effect: DetachEffect, drain_seconds: float) -> int:
        self.calls.append(("detach", effect.request_position))
        return await self._free(effect.attach_position, drain_seconds)

    def retain(self, residents: Residents) -> None:
        if self.model_position is not None and self.model_position != residents.model:
            self._drop_model()
        for position in set(self.residents) - set(residents.saes):
            task = asyncio.get_running_loop().create_task(self._drain(position))
            self._drains.add(task)
            task.add_done_callback(self._drains.discard)

    async def raw(
        self, attach_position: int, edits: tuple[Edit, ...], profiled: ProfiledFeatures | None = None
    ) -> tuple[Edit, ...]:
        if attach_position not in self.residents:
            raise SAENotAttachedError("the SAE is not on the device")
        known = profiled or ProfiledFeatures()
        return tuple(edit if edit.unit == "raw" else self._resolved(edit, known) for edit in edits)

    async def raw_on_disk(self, location: SaeLocation, folder: str, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        del location, folder
        return tuple(edit if edit.unit == "raw" else self._resolved(edit, ProfiledFeatures()) for edit in edits)

    def _resolved(self, edit: Edit, profiled: ProfiledFeatures) -> Edit:
        """Every decoder row is of length 1."""
        if edit.method in ("scale", "project"):
            raise BadRequestError("a factor has no unit", param="unit")
        maxima, median = profiled.maxima | self.maxima, self.median_norm or profiled.median_norm
        known = {"unit": 1.0, "max": maxima.get(edit.feature), "norm": median}[edit.unit]
        if known is None:
            raise SAEUnsupportedError("the statistic is missing")
        return replace(edit, strength=edit.strength * known, unit="raw")

    async def feature(self, attach_position: int, feature: int) -> FeatureDetails:
        if attach_position not in self.residents:
            raise SAENotAttachedError("the SAE is not on the device")
        sae = self.residents[attach_position][0].sae
        d_sae = sae.d_sae
        if not 0 <= feature < d_sae:
            raise FeatureOutOfRangeError("no such feature", feature=feature, d_sae=d_sae)
        near = tuple(NearFeature((feature + n) % d_sae, 1 - 0.1 * n) for n in range(1, 11))
        tokens = tuple(TokenWeight(token, chr(token), 3.0 - n) for n, token in enumerate(range(97, 107)))
        return FeatureDetails(
            feature=feature,
            decoder_norm=1.0,
            bias=0.0 if sae.encodes else None,
            threshold=None,
            nearest=near,
            promoted=tokens,
            suppressed=tuple(TokenWeight(each.token_id, each.token, -9.0) for each in tokens),
            max_activation=self.maxima.get(feature),
            label=next(iter(sae.names[feature : feature + 1]), None),
        )

    async def grammar(self, schema: str) -> Grammar:
        self._loaded()
        self._grammars = self._grammars or grammars(END, self.specials)
        compiled: Grammar = self._grammars.compiled(schema)
        return compiled

    def generate(self, request: GenerationRequest) -> RunningText:
        model = self._loaded()
        taken = sum(each.request.scoring is None and not each.request.background for each in self._streams)
        if not request.background and taken >= self.max_running + self.max_waiting:
            raise MailboxFullError("too many generations are waiting", retry_after=1)
        if request.deterministic and not model.can_be_deterministic:
            raise SAEUnsupportedError("the model's kernels are not deterministic")
        if not request.turns and any(edit.asks_for_roles for sae in request.intervention for edit in sae.steering):
            raise BadRequestError("positions by role require a chat", param="positions")
        if any(not 0 <= each < self.vocabulary for each in request.sampling.stop_token_ids):
            raise BadRequestError("a stop token is outside the vocabulary", param="stop_token_ids")
        if any(not 0 <= token < self.vocabulary for token, _ in request.sampling.logit_bias):
            raise BadRequestError("a biased token is outside the vocabulary", param="logit_bias")
        if (request.sampling.response_format is None) != (request.grammar is None):
            raise BadRequestError("a response format and its grammar come together", param="response_format")
        return self._started(request, model)

    def score(self, requests: Sequence[GenerationRequest], *, baseline: int | None = None) -> tuple[RunningText, ...]:
        """Every edit makes every token half as probable again; nothing of the baseline's is computed."""
        model = self._loaded()
        for request in requests:
            if len(request.given) > model.context_length:
                raise BadRequestError("the text is longer than the model's context")
            assert request.scoring is not None
            self._check_ids((*request.token_ids, *request.scoring.continuation, *request.scoring.targets))
            if request.deterministic and not model.can_be_deterministic:
                raise SAEUnsupportedError("the model's kernels are not deterministic")
        apart = [None if baseline is None else edits_apart(each, requests[baseline]) for each in requests]
        beside = object()
        return tuple(self._started(each, model, by, beside) for each, by in zip(requests, apart, strict=True))

    def _started(
        self, request: GenerationRequest, model: ModelFacts, apart: int | None = None, beside: object = None
    ) -> RunningText:
        stream = RunningText(self, request, model.context_length, apart, beside or object())
        self._streams.add(stream)
        stream.task = asyncio.get_running_loop().create_task(self._run(stream))
        return stream

    async def evaluate(self, group: TextGroup) -> EvaluatedGroup:
        d_sae = await self._measured(group)
        return evaluated(group, d_sae, self.hidden_size)

    async def read_group(self, group: TextGroup) -> ReadGroup:
        return read(group, await self._measured(group))

    async def compare_rows(self, attach_position: int) -> ComparedRows:
        sae = self._reads(attach_position)
        return compared(sae.d_sae, same_width=sae.d_in == sae.d_out)

    async def _measured(self, group: TextGroup) -> int:
        """Waits as for a step of a text; the SAE's width."""
        self.calls.append(("measure", group.attach_position))
        self._loaded()
        sae = self._reads(group.attach_position)
        if max(map(len, group.texts)) > self.context_length:
            raise BadRequestError("a text is longer than the model's context")
        for text in group.texts:
            self._check_ids(text)
        await _pause(self.measure_seconds, self.measure_gate)
        self._loaded()
        if group.attach_position not in self.residents:
            raise SAENotAttachedError("the SAE was detached")
        return sae.d_sae

    def _reads(self, attach_position: int) -> SaeDescription:
        if attach_position not in self.residents:
            raise SAENotAttachedError("the SAE is not on the device")
        sae = self.residents[attach_position][0].sae
        if not sae.encodes:
            raise SAEUnsupportedError("vectors have no encoder")
        return sae

    async def close(self) -> None:
        for task in self._drains:
            task.cancel()
        for stream in tuple(self._streams):
            stream.finish("error", "model_not_loaded")
        self._drop_model()
        self.residents.clear()
        self.closed = True

    def _drop_model(self) -> None:
        for stream in tuple(self._streams):
            stream.finish("error", "model_not_loaded")
        self.model = self.model_position = None

    async def _drain(self, position: int) -> None:
        await self._free(position, self.drain_seconds)

    async def _free(self, position: int, drain_seconds: float) -> int:
        users = [stream for stream in self._streams if position in stream.uses]
        if users and position in self.residents:
            await asyncio.wait([stream.finished for stream in users], timeout=drain_seconds)
        freed = self.residents.pop(position, None)
        for stream in users:
            stream.finish("intervention_removed")
        return 0 if freed is None else freed[1].device_bytes

    @contextlib.asynccontextmanager
    async def _turn(self, share: str, beside: object) -> AsyncIterator[None]:
        """One of those that run at a time; who waits has its turn by share."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.push(share, (beside, turn))
        self._take_turns()
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.keep(lambda each: each[1] is not turn)
            if not turn.cancelled():
                self._leave(share, beside)
            raise
        try:
            yield
        finally:
            self._leave(share, beside)

    def _take_turns(self) -> None:
        while self._waiting and len(self._having_turns) < self.max_running:
            running = Counter(share for share, _ in {*self._having_turns})
            share = self._waiting.turn(self._most, running)
            if share is None:
                return
            ((beside, turn),) = self._waiting.take(share)
            if not turn.done():
                self._having_turns.append((share, beside))
                turn.set_result(None)

    def _leave(self, share: str, beside: object) -> None:
        self._having_turns.remove((share, beside))
        self._take_turns()

    def limit(self, running: Mapping[str, int]) -> None:
        self._most = dict(running)
        self._take_turns()

    async def _left_alone(self, stream: RunningText) -> None:
        """A text of a run waits while another one is there."""
        while others := [each.finished for each in self._streams if not each.request.background]:
            await asyncio.wait([stream.finished, *others], return_when=asyncio.FIRST_COMPLETED)
            if stream.finished.done():
                return

    async def _run(self, stream: RunningText) -> None:
        behind = stream.request.background
        async with contextlib.nullcontext() if behind else self._turn(stream.request.share, stream.beside):
            if behind:
                await self._left_alone(stream)
            stream.append(None)
            while not stream.finished.done():
                await _pause(self.step_seconds, self.text_gate)
                if behind:
                    await self._left_alone(stream)
                    if stream.finished.done():
                        return
                if stream.uses - set(self.residents):
                    stream.finish("intervention_removed")
                    return
                for position, after in self.faults.items():
                    if position in stream.uses and len(stream.ids) >= after:
                        stream.finish("error", "internal", faulted=position)
                        return
                stream.step(self.ends_after)


async def _pause(seconds: float, gate: asyncio.Event | None) -> None:
    await asyncio.sleep(seconds)
    if gate is not None:
        await gate.wait()
