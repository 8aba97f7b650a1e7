"""Logs of real texts: a tiny random model with real files, the real hub, engine and log, and no HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from sae_actor.actor import Actor, Performer
from sae_actor.domain.chats import Tokenization
from sae_actor.domain.commands import Attach, Command, Detach, Import, LoadModel, Quantization, Steer
from sae_actor.domain.events import Draft, Event, GenerationStarted, ResponseFormat, Sampling
from sae_actor.domain.messages import AdmitGeneration, Start
from sae_actor.domain.refs import Edit, Exclusion, intervention_sha256
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.eventlog import SqliteLog
from sae_actor.generations import Completed, Generations, Requested, TokenOptions
from sae_actor.hub import HuggingFaceHub
from sae_actor.ports import Scoring
from sae_actor.ports.clock import SystemClock
from sae_actor.subscriptions import Broadcast

View = dict[str, Any]
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=6, seed=1)
SAMPLED = Sampling(temperature=0.9, top_p=0.9, max_tokens=6, seed=5)


def edit(feature: int, strength: float, *, exclude: tuple[Exclusion, ...] = (), **more: Any) -> Edit:
    return Edit(feature=feature, strength=strength, exclude=exclude, **more)


class Recorder:
    """A running service without HTTP, on a data folder of its own."""

    def __init__(
        self,
        actor: Actor,
        texts: Generations,
        engine: TorchEngine,
        hub: HuggingFaceHub,
        log: SqliteLog,
        *,
        performer: Performer,
    ) -> None:
        self.actor = actor
        self.performer = performer
        self.texts = texts
        self.engine = engine
        self.hub = hub
        self.log = log

    async def do(self, command: Command) -> None:
        accepted = await self.actor.submit(command, principal="me")
        outcome = await self.actor.outcome(accepted.command_id, 60)
        assert outcome.status == "completed", outcome

    async def attach(self, sae: Path, **more: Any) -> str:
        """Import and attach an SAE; its id."""
        await self.do(Import(path=str(sae)))
        sae_id = next(each for each, record in self.actor.state.saes.items() if record.path == str(sae))
        await self.do(Attach(sae_id=sae_id, **more))
        return sae_id

    async def steer(self, sae_id: str, *edits: Edit) -> None:
        await self.do(Steer(sae_id=sae_id, features=edits))

    async def detach(self, sae_id: str) -> None:
        await self.do(Detach(sae_id=sae_id))

    async def say(
        self,
        prompt: Any = "hello",
        sampling: Sampling = GREEDY,
        how: Tokenization | None = None,
        *,
        schema: str | None = None,
        **asked: Any,
    ) -> tuple[str, Completed]:
        """Make a text, which follows the schema if there is one; its id and its end."""
        read = await self.engine.tokenize(prompt, how)
        grammar = None if schema is None else await self.engine.grammar(schema)
        if schema is not None:
            form = ResponseFormat(type="json_schema", schema_sha256=hashlib.sha256(schema.encode()).hexdigest())
            sampling = replace(sampling, response_format=form)

        def ask(generation_id: str) -> AdmitGeneration:
            return AdmitGeneration(
                generation_id=generation_id,
                kind="completion",
                tokens_prompt=len(read.token_ids),
                turns=read.turns,
                tokenization=how,
                sampling=sampling,
                **asked,
            )

        asks = [Requested(ask, read.token_ids, grammar=grammar, schema=schema)]
        (text,) = await self.texts.open_all(asks, principal="me")
        return text.started.generation_id, await text.result()

    async def score(
        self, prompt: Any, more: str | None, *variants: dict[str, Any], how: Tokenization | None = None,
        last: bool = False, baseline: int | None = None,
    ) -> list[tuple[str, Completed]]:  # fmt: skip
        """Score a text and what follows it, under several interventions; their ids and ends."""
        read = await self.engine.tokenize(prompt, how)
        ids = () if more is None else (await self.engine.tokenize(more)).token_ids
        scoring = Scoring(continuation=ids, runs_last=last)

        def ask(generation_id: str, fields: dict[str, Any]) -> AdmitGeneration:
            sampling = replace(GREEDY, max_tokens=len(ids) + last)
            return AdmitGeneration(
                generation_id=generation_id, kind="score", tokens_prompt=len(read.token_ids), turns=read.turns,
                tokenization=how, sampling=sampling, runs_last=last, **fields,
            )  # fmt: skip

        asks = [
            Requested(partial(ask, fields=each), read.token_ids, TokenOptions(prompt_logprobs=0), scoring=scoring)
            for each in variants
        ]
        (texts,) = await self.texts.open_scores([asks], baseline=baseline, principal="me")
        return [(text.started.generation_id, await text.result()) for text in texts]


@asynccontextmanager
async def recording(
    folder: Path,
    model: Path,
    *,
    record_text: bool = True,
    max_attachments: int = 2,
    dtype: str = "auto",
    quantization: Quantization | None = None,
    environment: Mapping[str, str] | None = None,
    threads: int = 1,
    device: str = "cpu",
) -> AsyncIterator[Recorder]:
    """A service that writes into `folder`, with the model loaded; stopped in order at the end. `environment` is that
    of its downloads."""
    log = await SqliteLog.open(folder)
    engine = TorchEngine(EngineSettings(threads=threads))
    hub = HuggingFaceHub(folder / "hub", import_roots=[Path("/")], environment=environment, reserve_bytes=0)
    performer = Performer(engine, hub, lambda *_: None, 0.1)
    actor = Actor(log, engine, performer, SystemClock(), Broadcast(log))
    await actor.replay()
    await actor.start(Start(version="test", max_attachments=max_attachments))
    texts = Generations(actor, engine, record_text=record_text)
    recorder = Recorder(actor, texts, engine, hub, log, performer=performer)
    try:
        await recorder.do(LoadModel(model=str(model), device=device, dtype=dtype, quantization=quantization))
        yield recorder
    finally:
        await texts.close()
        await actor.stop()
        await engine.close()
        await hub.close()
        await log.close()


async def forged(folder: Path, into: Path, change: Callable[[str, View], None]) -> Path:
    """A log with another history: `change` is given each event's type and data, to be altered in place."""
    log = await SqliteLog.open(folder)
    events: Sequence[Event] = await log.read(0, 100_000)
    await log.close()
    drafts = []
    for event in events:
        data = msgspec.json.decode(event.data)
        change(event.type, data)
        fields = {name: getattr(event, name) for name in Draft.__struct_fields__ if name != "data"}
        drafts.append(Draft(**fields, data=msgspec.Raw(msgspec.json.encode(data))))
    other = await SqliteLog.open(into)
    await other.append(drafts, expected=0)
    await other.close()
    return into


def changing(name: str, change: Callable[[View], None]) -> Callable[[str, View], None]:
    """Alter the payloads of one text."""

    def altered(_: str, data: View) -> None:
        if data.get("generation_id") == name:
            change(data)

    return altered


def stronger(data: View) -> None:
    """A history in which the text was steered otherwise, digests and all."""
    if "intervention" in data:
        data["intervention"][0]["steering"][0]["strength"] = -30.0
        started = msgspec.convert(data, GenerationStarted)
        data["intervention_sha256"] = intervention_sha256(started.intervention)
