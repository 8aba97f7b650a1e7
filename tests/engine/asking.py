"""Effects and requests as the actor makes them, short to write."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from msgspec.structs import replace

from sae_actor.domain.chats import MessageSpan, Reasoning
from sae_actor.domain.effects import AttachEffect, DetachEffect, LoadModelEffect
from sae_actor.domain.events import ResponseFormat, Sampling
from sae_actor.domain.refs import SINK_WINDOW, ActiveSae, Edit, Exclusion, HookPoint, Mode, SaeDescription, StopWhen
from sae_actor.domain.state import SaeLocation
from sae_actor.ports import Engine, Finished, GenerationRequest, Grammar, Progress, Scoring, Token, Watch

POINT = HookPoint("resid_post", 1)
LOCATION = SaeLocation(source="import", repository_id=None, commit=None, path=None, files=())


def no_progress(_: Progress) -> None:
    """Nobody looks."""


def load(model: str, at: int = 1, **fields: str | None) -> LoadModelEffect:
    settings: dict[str, Any] = {"revision": "main", "dtype": "auto", "device": "auto", **fields}
    return LoadModelEffect(request_position=at, model=model, **settings)


def attach(at: int, *, point: HookPoint = POINT, d_in: int = 32, d_sae: int = 24, out: HookPoint | None = None,
           d_out: int | None = None, dtype: str = "float32") -> AttachEffect:  # fmt: skip
    description = SaeDescription(
        format="sae_lens", architecture="standard", d_in=d_in, d_sae=d_sae, d_out=d_out or d_in, dtype="float32"
    )
    return AttachEffect(
        request_position=at,
        sae_id=f"sae-{at}",
        weights_sha256="0" * 64,
        location=LOCATION,
        sae=description,
        hook_point=point,
        hook_point_out=out,
        mode="steer",
        dtype=dtype,
    )


def detach(attached_at: int, at: int = 99) -> DetachEffect:
    return DetachEffect(request_position=at, sae_id=f"sae-{attached_at}", attach_position=attached_at)


def active(
    at: int,
    *edits: Edit,
    point: HookPoint = POINT,
    out: HookPoint | None = None,
    mode: Mode = "steer",
    exclude: tuple[Exclusion, ...] | None = None,
) -> ActiveSae:
    return ActiveSae(
        sae_id=f"sae-{at}",
        weights_sha256="0" * 64,
        hook_point=point,
        hook_point_out=out,
        mode=mode,
        steering=edits,
        exclude=exclude,
        attach_position=at,
    )


def request(
    ids: tuple[int, ...],
    *saes: ActiveSae,
    tokens: int = 8,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: tuple[str, ...] = (),
    deadline: float = 60.0,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    deterministic: bool = False,
    watched: tuple[Watch, ...] = (),
    stop_when: StopWhen | None = None,
    turns: tuple[MessageSpan, ...] = (),
    window: int | None = SINK_WINDOW,
    reasoning: Reasoning | None = None,
    grammar: Grammar | None = None,
    **more: Any,
) -> GenerationRequest:
    """`more`: fields of `Sampling`."""
    form = None if grammar is None else ResponseFormat(type="json_object")
    fields = {"stop": stop, "stop_in_hidden": bool(stop), "response_format": form, **more}
    return GenerationRequest(
        generation_id="gen",
        token_ids=ids,
        sampling=Sampling(temperature=temperature, top_p=top_p, max_tokens=tokens, seed=seed, **fields),
        intervention=saes,
        deadline_seconds=deadline,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        deterministic=deterministic,
        watched=watched,
        stop_when=stop_when,
        turns=turns,
        reasoning=reasoning,
        sink_window=window,
        grammar=grammar,
    )


def scoring(ids: tuple[int, ...], *saes: ActiveSae, more: tuple[int, ...] = (), last: bool = False,
            targets: tuple[int, ...] = (), top: int = 0, **fields: Any) -> GenerationRequest:  # fmt: skip
    """A text to score: a prompt, and `more` after it."""
    asked = request(ids, *saes, tokens=len(more) + (last and bool(more)), prompt_logprobs=top, **fields)
    return replace(asked, scoring=Scoring(continuation=more, runs_last=last, targets=targets))


async def scored(engine: Engine, *asked: GenerationRequest, baseline: int | None = None) -> list[Finished]:
    """One text under several interventions: the ends."""
    return [(await read(stream))[1] for stream in engine.score(asked, baseline=baseline)]


async def read(stream: AsyncIterator[Token | Finished]) -> tuple[list[Token], Finished]:
    """The whole stream: its tokens, and its end."""
    tokens: list[Token] = []
    async for item in stream:
        if isinstance(item, Finished):
            return tokens, item
        tokens.append(item)
    raise AssertionError("the stream ended without Finished")


async def finished(engine: Engine, asked: GenerationRequest) -> Finished:
    return (await read(engine.generate(asked)))[1]


def apart(end: Finished) -> Finished:
    """The end without what it tells of its neighbours."""
    return replace(end, batch=None)
