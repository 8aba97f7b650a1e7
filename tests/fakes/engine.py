"""An engine without torch: the port's behaviour, with text that is a function of prompt, intervention and seed.

Bytes are its tokens (ids 0 to 255), `END` is 256. Tests turn its knobs: pauses, gates and failures; `calls`
records what was asked of it, in order.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import hashlib
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from sae_actor.domain.effects import AttachEffect, DetachEffect, LoadModelEffect, Residents
from sae_actor.domain.events import Receipt
from sae_actor.domain.refs import ActiveSae, Edit, FinishReason, ModelFacts, Turn, When, intervention_sha256
from sae_actor.errors import (
    BadRequestError,
    FeatureOutOfRangeError,
    MailboxFullError,
    ModelNotFoundError,
    ModelNotLoadedError,
    SAEError,
    SAEIncompatibleError,
    SAENotAttachedError,
    SAEUnsupportedError,
)
from sae_actor.ports import (
    Activations,
    AttachedSae,
    FeatureActivation,
    FeatureDetails,
    Finished,
    NearFeature,
    Progress,
    ScoredToken,
    TextRequest,
    Token,
    Tokenized,
    TokenWeight,
    Watch,
)
from tests.fakes.coverage import covered, ranges

END = 256
VOCABULARY = 257
_LETTERS = b"abcdefghijklmnopqrstuvwxyz etaoin"


@dataclass
class FakeEngine:
    """Implements `sae_actor.ports.Engine`; every pause is 0 and nothing fails until told."""

    num_layers: int = 4
    hidden_size: int = 16
    context_length: int = 256
    cache_positions: int | None = None
    has_chat_template: bool = True
    max_running: int = 4
    max_waiting: int = 64
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
    load_error: SAEError | None = None
    attach_error: SAEError | None = None
    faults: dict[int, int] = field(default_factory=dict)
    """attach_position → number of tokens after which its hook fails."""
    maxima: dict[int, float] = field(default_factory=dict)
    median_norm: float | None = None
    """What is recorded of its SAEs."""
    ends_after: int | None = None
    """The model ends its text with the end token after so many tokens."""

    calls: list[tuple[str, int]] = field(default_factory=list)
    model: ModelFacts | None = None
    model_position: int | None = None
    residents: dict[int, tuple[AttachEffect, AttachedSae]] = field(default_factory=dict)
    closed: bool = False
    _streams: set[_Stream] = field(default_factory=set)
    _turn: asyncio.Semaphore | None = None
    _drains: set[asyncio.Task[None]] = field(default_factory=set)

    async def load_model(self, effect: LoadModelEffect, progress: Progress) -> ModelFacts:
        self.calls.append(("load_model", effect.request_position))
        if self.model is not None and self.model_position == effect.request_position:
            return self.model
        self._drop_model()
        await _pause(self.load_seconds, self.load_gate)
        progress("model_progress", {"stage": "loading", "model": effect.model})
        if effect.model in self.missing:
            raise ModelNotFoundError(f"no model {effect.model}", model=effect.model)
        if self.load_error is not None:
            raise self.load_error
        width = self.hidden_size
        widths = dict.fromkeys(
            ("resid_pre", "resid_mid", "resid_post", "attn_out", "attn_z", "mlp_in", "mlp_out"), width
        )
        self.model = ModelFacts(
            model_id=effect.model,
            revision=effect.revision,
            commit="0" * 40,
            model_type="fake",
            dtype="float32" if effect.dtype == "auto" else effect.dtype,
            device="cpu" if effect.device == "auto" else effect.device,
            num_layers=self.num_layers,
            hidden_size=width,
            context_length=self.context_length,
            cache_positions=self.cache_positions,
            memory_bytes=4 * width * VOCABULARY,
            widths={**widths, "mlp_act": 4 * width},
            has_chat_template=self.has_chat_template,
            environment={"engine": "fake"},
        )
        self.model_position = effect.request_position
        return self.model

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

    async def raw(self, attach_position: int, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        if attach_position not in self.residents:
            raise SAENotAttachedError("the SAE is not on the device")
        return tuple(edit if edit.unit == "raw" else self._resolved(edit) for edit in edits)

    def _resolved(self, edit: Edit) -> Edit:
        """Every decoder row is of length 1."""
        if edit.method in ("scale", "project"):
            raise BadRequestError("a factor has no unit", param="unit")
        known = {"unit": 1.0, "max": self.maxima.get(edit.feature), "norm": self.median_norm}[edit.unit]
        if known is None:
            raise SAEUnsupportedError("the statistic is missing")
        return replace(edit, strength=edit.strength * known, unit="raw")

    async def feature(self, attach_position: int, feature: int) -> FeatureDetails:
        if attach_position not in self.residents:
            raise SAENotAttachedError("the SAE is not on the device")
        d_sae = self.residents[attach_position][0].sae.d_sae
        if not 0 <= feature < d_sae:
            raise FeatureOutOfRangeError("no such feature", feature=feature, d_sae=d_sae)
        near = tuple(NearFeature((feature + n) % d_sae, 1 - 0.1 * n) for n in range(1, 11))
        tokens = tuple(TokenWeight(token, chr(token), 3.0 - n) for n, token in enumerate(range(97, 107)))
        return FeatureDetails(
            feature=feature,
            decoder_norm=1.0,
            bias=0.0,
            threshold=None,
            nearest=near,
            promoted=tokens,
            suppressed=tuple(TokenWeight(each.token_id, each.token, -9.0) for each in tokens),
            max_activation=self.maxima.get(feature),
        )

    async def tokenize(self, prompt: str | Sequence[dict[str, str]] | Sequence[int]) -> Tokenized:
        model = self._loaded()
        ids: tuple[int, ...]
        told: list[Turn] = []
        if isinstance(prompt, str):
            ids = tuple(prompt.encode("utf-8", "surrogatepass"))
        elif all(isinstance(item, int) for item in prompt):
            ids = tuple(item for item in prompt if isinstance(item, int))
        else:
            if not model.has_chat_template:
                raise BadRequestError("the model has no chat template")
            turns = [item for item in prompt if isinstance(item, dict)]
            ids = ()
            for turn in turns:
                head, content = f"<{turn['role']}>".encode(), turn["content"].encode("utf-8", "surrogatepass")
                said = (len(ids) + len(head), len(ids) + len(head) + len(content))
                told.append(Turn(role=turn["role"], first=len(ids), stop=said[1] + 1, content=said))
                ids += (*head, *content, 10)
            ids += tuple(b"<assistant>")
        if not ids:
            raise BadRequestError("the prompt is empty", param="prompt")
        if any(not 0 <= each < VOCABULARY for each in ids):
            raise BadRequestError("a token id is outside the vocabulary")
        if len(ids) > model.context_length:
            raise BadRequestError("the prompt is longer than the model's context")
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces = [decoder.decode(bytes([each])) if each != END else "<end>" for each in ids]
        pieces[-1] += decoder.decode(b"", final=True)
        return Tokenized(
            token_ids=ids, tokens=tuple(pieces), special=tuple(each == END for each in ids), turns=tuple(told)
        )

    def generate(self, request: TextRequest) -> _Stream:
        model = self._loaded()
        if len(self._streams) >= self.max_running + self.max_waiting:
            raise MailboxFullError("too many texts are waiting", retry_after=1)
        if request.deterministic and not model.can_be_deterministic:
            raise SAEUnsupportedError("the model's kernels are not deterministic")
        if not request.turns and any(edit.asks_for_roles for sae in request.intervention for edit in sae.steering):
            raise BadRequestError("positions by role need a chat", param="positions")
        self._turn = self._turn or asyncio.Semaphore(self.max_running)
        stream = _Stream(self, request, model.context_length)
        self._streams.add(stream)
        stream.task = asyncio.get_running_loop().create_task(self._run(stream))
        return stream

    async def close(self) -> None:
        for task in self._drains:
            task.cancel()
        for stream in tuple(self._streams):
            stream.finish("error", "model_not_loaded")
        self._drop_model()
        self.residents.clear()
        self.closed = True

    def _loaded(self) -> ModelFacts:
        if self.model is None:
            raise ModelNotLoadedError("no model is loaded")
        return self.model

    def _drop_model(self) -> None:
        for stream in tuple(self._streams):
            stream.finish("error", "model_not_loaded")
        self.model = self.model_position = None

    async def _drain(self, position: int) -> None:
        await self._free(position, self.drain_seconds)

    async def _free(self, position: int, drain_seconds: float) -> int:
        users = [stream for stream in self._streams if position in stream.uses]
        if users and position in self.residents:
            await asyncio.wait([stream.done for stream in users], timeout=drain_seconds)
        freed = self.residents.pop(position, None)
        for stream in users:
            stream.finish("intervention_removed")
        return 0 if freed is None else freed[1].device_bytes

    async def _run(self, stream: _Stream) -> None:
        assert self._turn is not None
        async with self._turn:
            while not stream.done.done():
                await _pause(self.step_seconds, self.text_gate)
                if stream.uses - set(self.residents):
                    stream.finish("intervention_removed")
                    return
                for position, after in self.faults.items():
                    if position in stream.uses and len(stream.ids) >= after:
                        stream.finish("error", "internal", faulted=position)
                        return
                stream.step(self.ends_after)


class _Stream(AsyncIterator[Token | Finished]):
    """One running text."""

    def __init__(self, engine: FakeEngine, request: TextRequest, context_length: int) -> None:
        self.request = request
        self.uses = frozenset(sae.attach_position for sae in request.saes)
        self.ids: list[int] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        self._engine = engine
        self._most = min(request.sampling.max_tokens, context_length - len(request.token_ids) + 1)
        self._text = ""
        self._shown = 0
        self._items: asyncio.Queue[Token | Finished] = asyncio.Queue()
        self._over = False
        changing = tuple(sae for sae in request.intervention if sae.changes_text)
        seed = request.sampling.seed if request.sampling.temperature > 0 else None
        self._read = 0
        self._passing: dict[int, float] = {}
        """Of the watches at a limited rate, by place in `watched`: when it was told last."""
        self._d_sae = {position: effect.sae.d_sae for position, (effect, _) in engine.residents.items()}
        self._key = f"{request.token_ids}{intervention_sha256(changing)}{seed}".encode()

    def step(self, ends_after: int | None) -> None:
        """Make one token."""
        index = len(self.ids)
        if ends_after is not None and index >= ends_after:
            self.ids.append(END)
            self._show(END, len(self._text))
            self.finish("stop")
            return
        digest = hashlib.sha256(self._key + index.to_bytes(8, "little")).digest()
        self.ids.append(_LETTERS[digest[0] % len(_LETTERS)])
        self._text += chr(self.ids[-1])
        stop = self.request.sampling.stop
        found = [at for at in (self._text.find(each) for each in stop) if at >= 0]
        if found:
            self._text = self._text[: min(found)]
            self._show(self.ids[-1], len(self._text))
            self.finish("stop")
        elif self._stops():
            self._show(self.ids[-1], len(self._text))
            self.finish("feature")
        elif len(self.ids) >= self._most:
            self._show(self.ids[-1], len(self._text))
            self.finish("length")
        else:
            held = max((n for each in stop for n in range(len(each)) if self._text.endswith(each[:n])), default=0)
            self._show(self.ids[-1], len(self._text) - held)

    def finish(self, reason: FinishReason, code: str | None = None, faulted: int | None = None) -> None:
        """End the text, once."""
        if self.done.done():
            return
        run = len(self.request.token_ids) + len(self.ids) - 1 if self.ids else 0
        special = {at for at, each in enumerate((*self.request.token_ids, *self.ids)) if each == END}
        edited, excluded = covered(
            self.request.intervention,
            len(self.request.token_ids),
            run,
            met=self._met,
            special=special,
            turns=self.request.turns,
        )
        self._items.put_nowait(
            Finished(
                reason=reason,
                receipt=Receipt(
                    tokens_prompt=len(self.request.token_ids),
                    tokens_generated=len(self.ids),
                    tokens_edited=len(edited),
                    tokens_excluded=len(excluded),
                    mean_relative_norm=0.25 if edited else 0.0,
                ),
                token_ids=tuple(self.ids),
                text=self._text[: self._shown],
                edited=ranges(edited),
                excluded=ranges(excluded),
                error_code=code,
                error_detail=None if code is None else "told to fail",
                faulted=faulted,
            )
        )
        self._leave()

    def _stops(self) -> bool:
        """Whether `stop_when` holds at the token before the newest one, if that was generated."""
        asked, at = self.request.stop_when, len(self.request.token_ids) + len(self.ids) - 2
        if asked is None or len(self.ids) < 2:
            return False
        return self._met(asked.sae, When(asked.feature, asked.above), at)

    def _met(self, sae: ActiveSae, when: When, at: int) -> bool:
        token = (*self.request.token_ids, *self.ids)[at]
        watch = Watch(sae=sae, features=(when.feature,))
        return activations(token, watch, self._d_sae[sae.attach_position])[0].activation > when.above

    def _show(self, token: int, upto: int) -> None:
        upto = max(upto, self._shown)
        own, top = self._scores(token)
        self._items.put_nowait(
            Token(
                id=token,
                text=self._text[self._shown : upto],
                offset=len(self.ids) - 1,
                scored=own,
                top=top,
                activations=self._activations(),
            )
        )
        self._shown = upto

    def _activations(self) -> tuple[Activations, ...]:
        """Of the positions run since the token before; at a limited rate of the newest one alone."""
        run = (*self.request.token_ids, *self.ids)[:-1]
        first, self._read = self._read, len(run)
        told = []
        for place, watch in enumerate(self.request.watched):
            if watch.every_seconds is not None and not self._due(place, watch):
                continue
            start = first if watch.every_seconds is None else len(run) - 1
            d_sae = self._d_sae[watch.sae.attach_position]
            rows = tuple(activations(token, watch, d_sae) for token in run[start:])
            told.append(Activations(sae_id=watch.sae.sae_id, first=start, rows=rows))
        return tuple(told)

    def _due(self, place: int, watch: Watch) -> bool:
        now = self.done.get_loop().time()
        if watch.sae.attach_position not in self._engine.residents:
            return False
        if now - self._passing.get(place, -math.inf) < (watch.every_seconds or 0.0):
            return False
        self._passing[place] = now
        return True

    def _scores(self, token: int) -> tuple[ScoredToken | None, tuple[ScoredToken, ...]]:
        """The chosen token is the most probable one, the letters behind it follow; each half as probable."""
        most = self.request.logprobs
        if most is None:
            return None, ()
        ids = [token, *(each for each in range(32, 127) if each != token)]
        texts = ["<end>" if each == END else chr(each) for each in ids]
        scored = [
            ScoredToken(id=each, text=text, bytes=text.encode(), logprob=-math.log(2) * (rank + 1))
            for rank, (each, text) in enumerate(zip(ids, texts, strict=True))
        ]
        return scored[0], tuple(scored[:most])

    def _leave(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        self._engine._streams.discard(self)

    async def __anext__(self) -> Token | Finished:
        if self._over:
            raise StopAsyncIteration
        item = await self._items.get()
        self._over = isinstance(item, Finished)
        return item

    async def aclose(self) -> None:
        """Free the slot."""
        self._over = True
        self._leave()
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task


def activations(token: int, watch: Watch, d_sae: int) -> tuple[FeatureActivation, ...]:
    """Of one token: 3, 2 and 1 for its own number and the two behind it, modulo d_sae; nothing else is on."""
    on = {(token + n) % d_sae: 3.0 - n for n in range(3)}
    if watch.top_k is None:
        return tuple(FeatureActivation(feature, on.get(feature, 0.0)) for feature in watch.features or ())
    asked = [feature for feature in on if watch.features is None or feature in watch.features]
    return tuple(FeatureActivation(feature, on[feature]) for feature in asked[: watch.top_k])


async def _pause(seconds: float, gate: asyncio.Event | None) -> None:
    await asyncio.sleep(seconds)
    if gate is not None:
        await gate.wait()
