"""given(events…).when(message).then(payloads…): the rules, told as stories.

A step of `given` is a payload, or a function from the position it will stand at to payloads, so that a story can
say `loaded()` and need not count. Every intent of a story is the begin of a command called `c<position>`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import pytest
from msgspec.structs import asdict, replace

from sae_actor.domain import events as ev
from sae_actor.domain.decide import decide
from sae_actor.domain.effects import Effect
from sae_actor.domain.events import Event, Payload, Problem, draft
from sae_actor.domain.evolve import evolve, fold
from sae_actor.domain.messages import Message
from sae_actor.domain.pending import pending
from sae_actor.domain.refs import Edit, HookPoint, ModelFacts, SaeDescription, SaeFile
from sae_actor.domain.reports import AttachedSae, EffectDone, EffectFailed, HubSae, Report, SaeFailed
from sae_actor.domain.state import EMPTY, AttachmentState, State, encode
from sae_actor.domain.weights import import_id_of, sae_id_of
from sae_actor.errors import SAEError

Step: TypeAlias = Payload | Callable[[int], Sequence[Payload]]

MODEL = "org/tiny"
D = 8
LAYERS = 4
REPOSITORY = "org/saes"
FOLDER = "/saes/demo"
A = sae_id_of(REPOSITORY, "a", "main")
B = sae_id_of(REPOSITORY, "b", "main")
C = sae_id_of(REPOSITORY, "c", "main")
IMPORTED = import_id_of(FOLDER)
BROKEN = Problem(code="internal", detail="told to fail")
STARTED = ev.ActorStarted(version="1")
DIED = ev.ActorStarted(version="1")
"""A start without a stop before it."""


def facts(**changes: Any) -> ModelFacts:
    widths = dict.fromkeys(("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_in", "mlp_out"), D)
    made = ModelFacts(
        model_id=MODEL,
        revision="main",
        commit="0" * 40,
        model_type="fake",
        dtype="float32",
        device="cpu",
        num_layers=LAYERS,
        hidden_size=D,
        context_length=64,
        memory_bytes=1000,
        widths={**widths, "mlp_act": 4 * D},
    )
    return replace(made, **changes)


def description(**changes: Any) -> SaeDescription:
    made = SaeDescription(
        format="sae_lens",
        architecture="standard",
        d_in=D,
        d_sae=32,
        d_out=D,
        dtype="float32",
        trained_on=MODEL,
        trained_layer=1,
        hook_name="blocks.1.hook_resid_post",
        hook_point=HookPoint("resid_post", 1),
    )
    return replace(made, **changes)


def files(name: str) -> tuple[SaeFile, ...]:
    return (SaeFile(f"{name}/cfg.json", 10, "a" * 64), SaeFile(f"{name}/sae_weights.safetensors", 100, "b" * 64))


def edit(feature: int = 3, strength: float = 7.0, **more: Any) -> Edit:
    return Edit(feature=feature, strength=strength, **more)


# — steps —


def loading(model: str = MODEL) -> Step:
    return ev.ModelLoadRequested(model=model, revision="main", dtype="auto", device="auto")


def loaded(model: str = MODEL, **changes: Any) -> Step:
    def steps(at: int) -> list[Payload]:
        asked = ev.ModelLoadRequested(model=model, revision="main", dtype="auto", device="auto")
        return [asked, ev.ModelLoaded(request_position=at, model=facts(model_id=model, **changes))]

    return steps


def downloading(path: str = "a", *, force: bool = False) -> Step:
    return ev.DownloadRequested(
        sae_id=sae_id_of(REPOSITORY, path, "main"),
        repository_id=REPOSITORY,
        revision="main",
        path=path,
        force=force,
    )


def completed(at: int, path: str = "a", *, reused: bool = False, **changes: Any) -> ev.DownloadCompleted:
    return ev.DownloadCompleted(
        request_position=at,
        sae_id=sae_id_of(REPOSITORY, path, "main"),
        commit="1" * 40,
        files=files(path),
        sae=description(**changes),
        weights_sha256=f"weights of {path}",
        reused=reused,
    )


def cached(path: str = "a", **changes: Any) -> Step:
    """An SAE whose download is complete."""

    def steps(at: int) -> list[Payload]:
        asked = downloading(path)
        assert isinstance(asked, Payload)
        return [asked, completed(at, path, **changes)]

    return steps


def imported() -> Step:
    def steps(at: int) -> list[Payload]:
        return [
            ev.DownloadRequested(sae_id=IMPORTED, source="import", path=FOLDER),
            ev.DownloadCompleted(
                request_position=at,
                sae_id=IMPORTED,
                source="import",
                files=files("demo"),
                sae=description(),
                weights_sha256="weights of demo",
            ),
        ]

    return steps


def attaching(sae_id: str = A, layer: int = 1, **more: Any) -> ev.AttachRequested:
    return ev.AttachRequested(sae_id=sae_id, hook_point=HookPoint("resid_post", layer), **more)


def attach_done(at: int, sae_id: str = A, layer: int = 1, **more: Any) -> ev.SaeAttached:
    return ev.SaeAttached(
        request_position=at,
        sae_id=sae_id,
        hook_point=HookPoint("resid_post", layer),
        **{
            "weights_sha256": f"weights of {dict(zip((A, B, C), 'abc', strict=True)).get(sae_id, 'demo')}",
            "memory_bytes": 2208,
            "device_bytes": 2300,
            **more,
        },
    )


def attached(sae_id: str = A, layer: int = 1, *, steering: tuple[Edit, ...] = (), **more: Any) -> Step:
    def steps(at: int) -> list[Payload]:
        made: list[Payload] = [
            attaching(sae_id, layer, **more),
            attach_done(at, sae_id, layer, mode=more.get("mode", "steer")),
        ]
        return made + ([ev.SteeringChanged(sae_id=sae_id, features=steering)] if steering else [])

    return steps


def restored(model_at: int, **saes: int) -> Step:
    """What a start brings back: the model that was asked for at `model_at`; SAEs `a=position of its request`."""
    ids = {"a": A, "b": B, "c": C}

    def steps(at: int) -> list[Payload]:
        made: list[Payload] = [ev.ModelLoaded(request_position=model_at, model=facts(), restored=True)]
        return made + [attach_done(position, ids[name], restored=True) for name, position in saes.items()]

    return steps


def lost(sae_id: str, request_position: int) -> ev.AttachFailed:
    """A restored attachment that could not be brought back."""
    return ev.AttachFailed(request_position=request_position, sae_id=sae_id, error=BROKEN, restored=True)


def attached_steered() -> tuple[Step, ...]:
    """1 start, 2–3 model, 4–5 SAE a, 6–7 attached, 8 steered."""
    return (STARTED, loaded(), cached("a"), attached(A, steering=(edit(),)))


# — the story —


def event(payload: Payload, position: int, command_id: str | None = None) -> Event:
    made = draft(payload, time=f"2026-01-01T00:00:{position % 60:02d}.000000Z", command_id=command_id, principal="me")
    known = {"position": position, "event_id": f"00000000-0000-4000-8000-{position:012d}"}
    return Event(**{**asdict(made), **known}, hash="")


class Story:
    """What happened so far."""

    def __init__(self, events: tuple[Event, ...] = (), newest: tuple[Payload, ...] = ()) -> None:
        self.events = events
        self.newest = newest
        """What the last message led to."""
        self.state: State = fold(events)

    @property
    def position(self) -> int:
        return self.state.position

    def and_then(self, *steps: Step) -> Story:
        """The story with more that happened, whatever the rules say of it."""
        events = list(self.events)
        for step in steps:
            at = len(events) + 1
            for payload in (step,) if isinstance(step, Payload) else step(at):
                position = len(events) + 1
                command = f"c{position}" if isinstance(payload, ev.Intent) else None
                events.append(event(payload, position, command))
        return Story(tuple(events))

    def when(self, message: Message | Payload) -> Story:
        """Decide a message; its events become part of the story. An error is kept for `refused`.

        The outcome of an effect stands for the report of that effect, which is owed now or was at some time.
        """
        try:
            payloads = decide(self._report(message) if isinstance(message, Payload) else message, self.state)
        except SAEError as error:
            return _Refused(self.events, error)
        told = self.and_then(*payloads)
        return Story(told.events, tuple(payloads))

    def _report(self, outcome: Payload) -> Report:
        at = getattr(outcome, "request_position", 0)
        match outcome:
            case ev.GpuLost() | ev.GenerationFinished() | ev.SettingsReloaded():
                return outcome
            case ev.HookFaulted():
                return SaeFailed(at, outcome.error)
            case ev.ModelLoadFailed() | ev.DownloadFailed() | ev.AttachFailed() | ev.DeleteFailed():
                return EffectFailed(self._owed(at), outcome.error)
            case ev.ModelLoaded():
                return EffectDone(self._owed(at), outcome.model)
            case ev.DownloadCompleted():
                found = {name: getattr(outcome, name) for name in HubSae.__struct_fields__}
                return EffectDone(self._owed(at), HubSae(**found))
            case ev.SaeAttached():
                made = {name: getattr(outcome, name) for name in AttachedSae.__struct_fields__}
                held = {"weights_sha256": outcome.weights_sha256, "weights_files": outcome.weights_files}
                return EffectDone(replace(self._owed(at), **held), AttachedSae(**made))
            case ev.SaeDetached() | ev.SaeDeleted():
                return EffectDone(self._owed(at), outcome.freed_bytes)
        pytest.fail(f"no effect ends with {outcome}")

    def _owed(self, request_position: int) -> Effect:
        state, owed = EMPTY, dict[int, Effect]()
        for each in self.events:
            state = evolve(state, each)
            owed.update({effect.request_position: effect for effect in pending(state)})
        return owed[request_position]

    def then(self, *expected: Payload) -> Story:
        """The last message led to exactly these payloads."""
        assert self.newest == expected
        return self

    def nothing_happens(self) -> Story:
        return self.then()

    def then_types(self, *expected: type[Payload]) -> Story:
        assert tuple(type(each) for each in self.newest) == expected
        return self

    def refused(self, code: str, **fields: Any) -> Story:
        pytest.fail(f"not refused with {code}: {self.newest}")

    def owes(self, *expected: tuple[str, int]) -> Story:
        """`pending` names exactly these effects, by name and position of the request."""
        assert [(each.name, each.request_position) for each in self.pending] == list(expected)
        return self

    @property
    def pending(self) -> tuple[Effect, ...]:
        return pending(self.state)

    def attachments(self) -> list[tuple[str, str]]:
        return [(a.sae_id, a.status) for a in self.state.attachments]

    def attachment(self, sae_id: str = A) -> AttachmentState:
        found = self.state.attachment(sae_id)
        assert found is not None
        return found

    def open_commands(self) -> set[str]:
        return set(self.state.commands)


class _Refused(Story):
    """A story whose last message was refused: nothing has changed."""

    def __init__(self, events: tuple[Event, ...], error: SAEError) -> None:
        super().__init__(events)
        self.error = error

    def then(self, *expected: Payload) -> Story:
        pytest.fail(f"refused: {self.error.code}: {self.error.detail}")

    def then_types(self, *expected: type[Payload]) -> Story:
        return self.then()

    def refused(self, code: str, **fields: Any) -> Story:
        assert (self.error.code, self.error.detail != "") == (code, True)
        assert {key: self.error.fields.get(key) for key in fields} == fields
        return Story(self.events)


def given(*steps: Step) -> Story:
    return Story().and_then(*steps)


def same_state(one: Iterable[Event], other: State) -> bool:
    """Whether the fold of the events is that state, to the byte."""
    return encode(fold(one, EMPTY)) == encode(other)
