"""The calls: one method per route or command line command; those about the log are in `log_calls`."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias, cast, overload
from urllib.parse import quote

import httpx

from ..errors import SAEAmbiguousError, SAENotFoundError
from .log_calls import LogCalls
from .presets import PresetCalls
from .runs import RunCalls
from .sse import StreamEvent, frames
from .wire import Answer, Features, UnreachableError, Wire, edits_of, problem_error

Messages: TypeAlias = Sequence[Mapping[str, str]]

DEFAULT_URL = "http://127.0.0.1:8000"
MAX_WAIT = 300
"""Seconds that the service waits for an outcome at most before it answers 202."""
POLL_SECONDS = 0.5
DOWNLOAD_ENDS = ("DownloadCompleted", "DownloadFailed", "DownloadCancelled")
TEXT_SECONDS = 660.0
"""An unstreamed answer arrives at its end; the service stops it before this."""
SILENCE_SECONDS = 60.0
"""The event stream carries a comment every 15 s; one that is silent for longer is dead."""


class Client(LogCalls, PresetCalls, RunCalls):
    """One service. `timeout`: seconds to wait for an answer, not counting waits that a method asks for.

    Raises `ValueError` for an invalid URL.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._wire = Wire(url, token, timeout, transport)

    @property
    def url(self) -> str:
        return self._wire.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._wire.close()

    # — what is there —

    def status(self) -> Answer:
        """`{"ready", "readiness", "model", "attachment", "attaching"}`: `readiness` is the body of `/ready`, and
        `attaching` the ids of the SAEs that are on their way to the model."""
        code, readiness = self._wire.request("GET", "/ready", allowed=(503,))
        return {
            "ready": code == 200,
            "readiness": readiness,
            "model": self.model(),
            "attachment": self.attachment(),
            "attaching": [sae["sae_id"] for sae in self.list()["saes"] if sae["status"] == "attaching"],
        }

    def model(self) -> Answer:
        return self._get("/api/model")

    def attachment(self) -> Answer:
        return self._get("/api/saes/attachment")

    def list(self) -> Answer:
        """`{"saes": [SAE], "attachment": Attachment}`"""
        return self._get("/api/saes")

    def sae(self, sae_id: str) -> Answer:
        return self._get(_path(sae_id))

    def find(self, prefix: str) -> str:
        """The `sae_id` that is `prefix` or alone begins with it; `SAENotFoundError`, `SAEAmbiguousError`."""
        ids = [str(sae["sae_id"]) for sae in self.list()["saes"]]
        if prefix in ids:
            return prefix
        found = [sae_id for sae_id in ids if sae_id.startswith(prefix)]
        if not found:
            raise SAENotFoundError(f"no SAE has the id {prefix} or an id that begins with it")
        if len(found) > 1:
            raise SAEAmbiguousError(f"{prefix} could be any of {', '.join(found)}", candidates=found)
        return found[0]

    def compatibility(self, sae_id: str, layer: int | None = None) -> Answer:
        return self._get(_path(sae_id, "compatibility"), {"layer": layer})

    def steering(self, sae_id: str) -> Answer:
        return self._get(_path(sae_id, "steering"))

    def catalog(self, repository_id: str, revision: str = "main") -> Sequence[Answer]:
        """The SAEs inside a hub repository, before any is downloaded."""
        query = {"repository_id": repository_id, "revision": revision}
        return cast("Sequence[Answer]", self._wire.request("GET", "/api/catalog", query=query)[1])

    # — commands —

    def command(self, type: str, *, wait: int = MAX_WAIT, key: str | None = None, **fields: Any) -> Answer:
        """Send the command `type` with these fields and wait for its outcome, however long it takes.

        `wait=0`: return as soon as the intent is durable. `key`: Idempotency-Key. A `failed` outcome is raised.
        """
        _, answer = self._post("/api/commands", {"type": type, **fields}, wait=wait, key=key)
        return self._outcome(answer) if wait else answer

    def load_model(
        self,
        model: str,
        revision: str = "main",
        dtype: str = "auto",
        device: str = "auto",
        quantization: str | None = None,
    ) -> Answer:
        """quantization: `int8` or `nf4`, by bitsandbytes."""
        settings: Answer = {"model": model, "revision": revision, "dtype": dtype, "device": device}
        if quantization is not None:  # services that do not know it refuse it
            settings["quantization"] = quantization
        return self.command("LoadModel", **settings)

    def fit(
        self,
        model: str,
        sae_id: str | None = None,
        revision: str = "main",
        dtype: str = "auto",
        quantization: str | None = None,
    ) -> Answer:
        """What a model would take of the service's memory, and an SAE next to it; nothing is loaded."""
        query = {"model": model, "sae_id": sae_id, "revision": revision, "dtype": dtype, "quantization": quantization}
        return self._get("/api/models/fit", query)

    def unload_model(self) -> Answer:
        return self.command("UnloadModel")

    def import_(self, path: str, layer: int | None = None) -> Answer:
        """Register the SAE in a folder of the service's machine, under one of its import roots. `layer`: which one, of
        a file with vectors of several layers."""
        fields: dict[str, Any] = {"path": path} if layer is None else {"path": path, "layer": layer}
        return self.command("Import", **fields)

    def download(
        self,
        repository_id: str,
        path: str | None = None,
        revision: str = "main",
        *,
        force: bool = False,
        wait: bool = True,
        progress: Callable[[Answer], None] | None = None,
    ) -> Answer:
        """Fetch one SAE; the outcome with its `sae_id`. `wait=False`: as soon as the request is durable.

        `progress`: takes the data of each `download_progress` of this SAE, at most four a second.
        """
        body = {"repository_id": repository_id, "path": path, "revision": revision, "force": force}
        _, answer = self._post("/api/saes/download", body, wait=MAX_WAIT if wait and progress is None else 0)
        if wait and progress is not None:
            self._follow(answer, progress)
        return {**self._outcome(answer), "sae_id": answer["sae_id"]} if wait else answer

    def _follow(self, accepted: Answer, progress: Callable[[Answer], None]) -> None:
        """Report a download's progress until it ends; if the stream breaks off, its outcome is still available."""
        if self._get(f"/api/commands/{accepted['command_id']}")["status"] != "accepted":
            return
        with contextlib.suppress(UnreachableError):
            for event in self.events(accepted["position"], ("download_progress", *DOWNLOAD_ENDS)):
                event_data = event.data if event.id is None else event.data["data"]
                if event_data.get("sae_id") != accepted["sae_id"]:
                    continue
                if event.type in DOWNLOAD_ENDS:
                    return
                progress(event_data)

    def cancel_download(self, sae_id: str) -> Answer:
        return self._post(_path(sae_id, "cancel"), {}, wait=MAX_WAIT)[1]

    def attach(
        self,
        sae_id: str,
        layer: int | None = None,
        hook_point: Mapping[str, Any] | None = None,
        *,
        mode: str = "steer",
        dtype: str = "float32",
        replace: bool = False,
        exclude: Sequence[str] | None = None,
    ) -> Answer:
        """Bring the SAE to a hook point, by default the one it was trained at.

        `exclude`: what mode `reconstruct` passes through; by default what its edits leave out, or sinks.
        """
        body: Answer = {"layer": layer, "hook_point": hook_point, "mode": mode, "dtype": dtype, "replace": replace}
        body["exclude"] = None if exclude is None else tuple(exclude)
        answer = self._post(_path(sae_id, "attach"), body, wait=MAX_WAIT)
        return self._effect(answer, "attached", "SaeAttached", ("hook_point", "memory_bytes"))

    def detach(self, sae_id: str) -> Answer:
        answer = self._post(_path(sae_id, "detach"), {}, wait=MAX_WAIT)
        return self._effect(answer, "detached", "SaeDetached", ("freed_bytes",))

    def delete(self, sae_id: str) -> Answer:
        answer = self._wire.request("DELETE", _path(sae_id), wait=MAX_WAIT)
        return self._effect(answer, "deleted", "SaeDeleted", ("freed_bytes",))

    def steer(
        self, sae_id: str, features: Features, *, enabled: bool = True, exclude: Sequence[str] = ("sink",)
    ) -> Answer:
        """Replace the steering: `{feature: strength}` or a list of edits; empty clears.

        `exclude` goes into every edit without its own.
        """
        body = {"features": edits_of(features, exclude), "enabled": enabled}
        return cast(Answer, self._wire.request("PUT", _path(sae_id, "steering"), body=body)[1])

    def monitor(
        self,
        sae_id: str,
        *,
        enabled: bool = True,
        features: Sequence[int] | None = None,
        top_k: int = 10,
        exclude: Sequence[str] = ("sink",),
    ) -> Answer:
        """Stream activations of an attached SAE during generation, as `activations` of `events`: the `top_k` largest of
        `features`, or of all, except at positions that `exclude` names; `enabled=False` ends that."""
        settings: Answer = {"features": features, "top_k": top_k, "exclude": tuple(exclude)}
        return self.command("Monitor", sae_id=sae_id, enabled=enabled, **settings)

    # — generations —

    @overload
    def generate(
        self, prompt: str | Messages, *, stream: Literal[False] = ..., sae: Answer | None = ..., **options: Any
    ) -> Answer: ...

    @overload
    def generate(
        self, prompt: str | Messages, *, stream: Literal[True], sae: Answer | None = ..., **options: Any
    ) -> Iterator[Answer]: ...

    def generate(
        self, prompt: str | Messages, *, stream: bool = False, sae: Answer | None = None, **options: Any
    ) -> Answer | Iterator[Answer]:
        """Text after a prompt, or the answer to chat messages: the OpenAI answer, or its chunks with `stream`.

        `options` are the fields of the request (`max_tokens`, `temperature`, `seed`, …), `sae` its extension object.
        """
        body: Answer = {"model": "default", **options, "stream": stream}
        if sae is not None:
            body["sae"] = sae
        if isinstance(prompt, str):
            path, body["prompt"] = "/v1/completions", prompt
        else:
            path, body["messages"] = "/v1/chat/completions", tuple(prompt)
        if stream:
            return self._chunks(path, body)
        return cast(Answer, self._wire.request("POST", path, body=body, wait=TEXT_SECONDS)[1])

    def _chunks(self, path: str, body: Answer) -> Iterator[Answer]:
        with self._wire.stream("POST", path, silence=TEXT_SECONDS, body=body) as chunks:
            for frame in frames(chunks):
                if frame.data == "[DONE]":
                    return
                chunk: Answer = json.loads(frame.data)
                if chunk.get("error"):
                    raise problem_error(chunk)
                yield chunk
        raise UnreachableError("the stream of the text was cut off")

    # — events —

    def events(
        self, after: int | None = None, types: Iterable[str] = (), last_event_id: str | None = None
    ) -> Iterator[StreamEvent]:
        """The durable events after a position (default: from the first), then live ones, until closed.

        `last_event_id`: the `id` of the last frame seen, to continue after it. Ends with `UnreachableError` when the
        stream does.
        """
        query = {"after": after, "types": ",".join(types) or None}
        headers = {"Last-Event-ID": last_event_id} if last_event_id is not None else {}
        with self._wire.stream("GET", "/api/events", silence=SILENCE_SECONDS, query=query, headers=headers) as chunks:
            for frame in frames(chunks):
                yield frame._replace(data=json.loads(frame.data))
        raise UnreachableError("the service closed the event stream")

    # — shapes of answers —

    def _post(self, path: str, body: Answer, *, wait: int, key: str | None = None) -> tuple[int, Answer]:
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        if key is not None:
            headers["Idempotency-Key"] = key
        return self._wire.request("POST", path, body=body, headers=headers, wait=wait)

    def _outcome(self, answer: Answer) -> Answer:
        """Wait until the command is over; a failed one is raised."""
        while answer["status"] == "accepted":
            time.sleep(POLL_SECONDS)
            answer = self._get(f"/api/commands/{answer['command_id']}")
        if answer["status"] == "failed":
            raise problem_error(answer["error"])
        return answer

    def _effect(self, answered: tuple[int, Answer], done: str, event_type: str, fields: Sequence[str]) -> Answer:
        """A resource route's answer; for a 202 it waits for the outcome."""
        code, answer = answered
        if code != 202:
            return answer
        outcome = self._outcome(answer)
        event = next(event for event in reversed(outcome["events"]) if event["type"] == event_type)
        data: Answer = event["data"]
        shown = {"status": done, "sae_id": data["sae_id"], "position": event["position"]}
        if "hook_point" in data:
            shown["layer"] = data["hook_point"]["layer"]
        return {**shown, **{name: data[name] for name in fields}}


def _path(sae_id: str, *parts: str) -> str:
    return "/".join(("/api/saes", quote(sae_id, safe=""), *parts))
