"""The testbed: a generation's model and SAEs on this machine, found where they were, and checked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ..domain.effects import AttachEffect, DetachEffect, LoadModelEffect
from ..domain.refs import ActiveSae, ModelFacts
from ..domain.structs import filled
from ..domain.views.provenance import Provenance
from ..errors import ModelLoadError, SAEError
from ..hub import HuggingFaceHub
from ..models.files import CONFIG, is_complete, local_folder
from ..ports import Engine, Finished, GenerationRequest, Progress, Token
from .local_saes import LocalSaes

DEADLINE_SECONDS = 3600.0


class NotComparable(Exception):  # noqa: N818 — no error: a verdict
    """The generation's model or SAEs are not here, or the log does not name them. `str()` is the reason."""


class Testbed:
    """One model at a time, and the SAEs of one generation. Nothing is fetched, nothing on disk is changed."""

    def __init__(self, folder: Path, model: Path | None = None, saes: Sequence[Path] = ()) -> None:
        """`folder`: the data folder of the log, whose hub/ holds the SAEs. On another machine `model` and `saes` are
        where they lie there; they must be the recorded files."""
        self._hub = HuggingFaceHub(folder / "hub")
        self._model = model
        self._local = LocalSaes(saes, self._hub) if saes else None
        self._engine: Engine | None = None
        self._wanted: ModelFacts | None = None
        """What the log says of the model that is loaded."""
        self._facts: ModelFacts | None = None
        self._failed: tuple[ModelFacts, str] | None = None
        """A model that failed to load is not tried again for the next generation."""
        self._residents: dict[tuple[object, ...], int] = {}
        self._last = 0

    @property
    def engine(self) -> Engine:
        """With the model requested last."""
        assert self._engine is not None
        return self._engine

    async def close(self) -> None:
        await self._drop_model()
        await self._hub.close()

    # — the model —

    async def model(self, known: Provenance) -> ModelFacts:
        """Have the recorded model loaded, in its type of number, with as many threads, on its device or else the CPU.

        Returns its facts here. Raises `NotComparable` if it is not available, or its files differ.
        """
        state = known.state.model
        if state is None or state.facts is None:
            raise NotComparable("the log does not say which model was loaded")
        wanted = state.facts
        if self._failed is not None and self._failed[0] == wanted:
            raise NotComparable(self._failed[1])
        if self._wanted != wanted or self._facts is None:
            await self._drop_model()
            try:
                self._facts = await self._load(wanted, state.quantization)
                self._wanted = wanted
                _same_files(wanted.environment, self._facts.environment)
            except (SAEError, NotComparable) as error:
                why = error.detail if isinstance(error, SAEError) else str(error)
                self._failed = (wanted, f"the model {wanted.model_id}: {why}")
                await self._drop_model()
                raise NotComparable(self._failed[1]) from None
        return self._facts

    async def _load(self, wanted: ModelFacts, quantization: str | None) -> ModelFacts:
        if self._model is None:
            _check_here(wanted)
        elif local_folder(str(self._model)) is None:
            raise NotComparable(f"there is no model in {self._model}")
        threads = wanted.environment.get("threads")
        self._engine = _engine(threads if isinstance(threads, int) and 1 <= threads <= 1024 else None)
        try:
            return await self._engine.load_model(self._effect(wanted, wanted.device, quantization), _quiet)
        except ModelLoadError as error:
            if "device" not in error.fields:
                raise
        return await self._engine.load_model(self._effect(wanted, "cpu", quantization), _quiet)

    def _effect(self, wanted: ModelFacts, device: str, quantization: str | None) -> LoadModelEffect:
        return LoadModelEffect(
            request_position=self._number(),
            model=wanted.model_id if self._model is None else str(self._model),
            # Without a commit it was a folder, whatever the requested revision.
            revision="main" if self._model is not None else wanted.commit or "main",
            dtype=wanted.dtype,
            device=device,
            quantization=quantization,
        )

    async def _drop_model(self) -> None:
        engine, self._engine = self._engine, None
        self._wanted = self._facts = None
        self._residents = {}
        if engine is not None:
            await engine.close()

    # — the SAEs —

    async def place(self, saes: tuple[ActiveSae, ...], known: Provenance) -> dict[int, int]:
        """Have these SAEs, and no others, on the model: attach_position in the log → attach_position here.

        Raises `NotComparable` if the files of one are gone or changed, or the log does not name them.
        """
        keys = {sae.attach_position: _key(sae, known) for sae in saes}
        for key in set(self._residents) - set(keys.values()):
            position = self._residents.pop(key)
            detach = DetachEffect(request_position=self._number(), sae_id="", attach_position=position)
            await self.engine.detach(detach, 0.0)
        for sae in saes:
            key = keys[sae.attach_position]
            if key not in self._residents:
                self._residents[key] = await self._attach(sae, known)
        return {position: self._residents[key] for position, key in keys.items()}

    async def _attach(self, sae: ActiveSae, known: Provenance) -> int:
        record = known.state.saes.get(sae.sae_id)
        _, completed = known.downloads.get((sae.sae_id, sae.weights_sha256), (None, None))
        if record is None or completed is None:
            raise NotComparable(f"the log does not say which files {sae.sae_id} was made of")
        location = replace(record.location, commit=completed.commit, files=completed.files)
        try:
            if self._local is None:
                path = await self._hub.locate(location)
            else:
                location, path = await self._local.locate(location)
            here = {"request_position": self._number(), "location": location, "dtype": _dtype(sae, known)}
            effect = filled(AttachEffect, sae, completed, **here)
            await self.engine.attach(effect, path)
        except SAEError as error:
            raise NotComparable(f"the SAE {sae.sae_id}: {error.detail}") from None
        return effect.request_position

    # — generations —

    async def run(self, request: GenerationRequest, take: Callable[[Token], None] | None = None) -> Finished:
        """Run a generation to its end; `take` gets each token. Raises `NotComparable` if it fails."""
        try:
            async with contextlib.aclosing(
                self.engine.generate(replace(request, deadline_seconds=DEADLINE_SECONDS))
            ) as items:
                async for item in items:
                    if isinstance(item, Finished):
                        break
                    if take is not None:
                        take(item)
                else:
                    raise NotComparable("it could not be run again: it did not end")
        except SAEError as error:
            raise NotComparable(f"it could not be run again: {error.detail}") from None
        if item.reason == "error":
            raise NotComparable(f"it could not be run again: {item.error_detail}")
        return item

    async def score(self, requests: Sequence[GenerationRequest], *, baseline: int) -> list[Finished]:
        """Score a text under several interventions; raises as `run`."""
        asked = [replace(request, deadline_seconds=DEADLINE_SECONDS) for request in requests]
        try:
            streams = self.engine.score(asked, baseline=baseline)
            ends = [end for stream in streams async for end in stream if isinstance(end, Finished)]
        except SAEError as error:
            raise NotComparable(f"it could not be scored again: {error.detail}") from None
        for end in ends:
            if end.scores is None:
                raise NotComparable(f"it could not be scored again: {end.error_detail or end.reason}")
        return ends

    def _number(self) -> int:
        self._last += 1
        return self._last


def _key(sae: ActiveSae, known: Provenance) -> tuple[object, ...]:
    """Attachments that are the same on the device."""
    return sae.sae_id, sae.weights_sha256, sae.hook_point, sae.hook_point_out, _dtype(sae, known)


def _dtype(sae: ActiveSae, known: Provenance) -> str:
    attached = (a for a in known.state.attachments if a.request_position == sae.attach_position)
    attachment = next(attached, None)
    if attachment is None:
        raise NotComparable(f"the log does not say in which dtype {sae.sae_id} was computed; it was not attached")
    return attachment.dtype


def _check_here(wanted: ModelFacts) -> None:
    """Nothing is fetched here: `NotComparable` for what is not on this machine."""
    if wanted.commit is None:
        if local_folder(wanted.model_id) is None:
            raise NotComparable("its folder is gone")
        return
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - half a second, for this alone

    settings = try_to_load_from_cache(wanted.model_id, CONFIG, revision=wanted.commit)
    if not isinstance(settings, str) or not is_complete(Path(settings).parent):
        raise NotComparable(f"commit {wanted.commit} is not in the hub's cache on this machine")


def _same_files(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    was, now = recorded.get("model_files"), here.get("model_files")
    if not isinstance(was, dict) or not isinstance(now, dict):
        raise NotComparable("the log does not say which files it was made of")
    changed = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    if changed:
        raise NotComparable(f"its files are not the ones it was loaded from: {', '.join(changed)}")


def _engine(threads: int | None) -> Engine:
    """Imports torch: seconds, so only when a model is wanted."""
    from ..engine import EngineSettings, TorchEngine  # noqa: PLC0415 - that is the point

    return TorchEngine(EngineSettings(threads=threads))


def _quiet(_: Progress) -> None:
    """The progress is dropped."""
