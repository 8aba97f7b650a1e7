"""A real service under load that is killed again and again, and the books of what it acknowledged.

`Run.life` is one life of the process: it starts, is held against everything that was acknowledged before, is put
under load, and dies of `kill -9` at a moment that chance picks, also while it starts. The books are the test's own:
events as `/api/log` gave them, folded by hand.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.fold_by_hand import Books
from tests.hub.build import sae_files

from .harness import Process

SENDERS = 8
PAGE = 5000
D_IN = 576
"""Width of the model in `launch`."""
INTENTS = {"ModelLoadRequested", "ModelUnloaded", "DownloadRequested", "DownloadCancelled", "DeleteRequested",
           "AttachRequested", "DetachRequested", "SteeringChanged", "MonitoringChanged"}  # fmt: skip

Answer = dict[str, Any]


def folders(root: Path, count: int = 4) -> list[str]:
    """Small SAEs on disk, to be imported and forgotten."""
    paths = []
    for number in range(count):
        folder = root / f"sae-{number}"
        folder.mkdir(parents=True)
        for name, data in sae_files(d_in=D_IN, d_sae=2, seed=number).items():
            (folder / name).write_bytes(data)
        paths.append(str(folder.resolve()))
    return paths


@dataclass
class Run:
    """Kills, and what was said in between."""

    data: Path
    imports: list[str]
    sae_ids: list[str]
    chance: random.Random
    with_model: bool
    """The engine is the one without torch of `launch`, so that SAEs are attached and steered too; otherwise it is
    `sae-actor serve` as it ships, without a model."""
    seconds: float = 0.3
    """Of load in one life, at most."""
    kills: int = 0
    early: int = 0
    """Of the kills, those that came during a start."""
    restarts: list[float] = field(default_factory=list)
    """Seconds from spawn to listening."""
    refused: int = 0
    events: list[Answer] = field(default_factory=list)
    books: Books = field(default_factory=Books)
    sent: dict[str, Answer] = field(default_factory=dict)
    """Key → command, of all that was sent."""
    acknowledged: dict[str, Answer] = field(default_factory=dict)
    """Key → the last answer to it."""
    unanswered: set[str] = field(default_factory=set)

    # — one life —

    def life(self) -> None:
        self.kills += 1
        if self.kills > 1 and self.chance.random() < 0.2:
            self._killed_while_starting()
            return
        began = time.monotonic()
        with self._start() as process:
            assert process.url, process.stderr.read_text()[-2000:]
            self.restarts.append(time.monotonic() - began)
            self.check(process)
            asyncio.run(self._load(process))
            assert process.wait() == -signal.SIGKILL

    def last_life(self) -> None:
        """Nothing is killed: what was acknowledged is asked for once more, and what was not is sent again."""
        with self._start() as process:
            self.check(process)
            for key in sorted(self.unanswered):
                self._note(key, process.client.post("/api/commands", json=self.sent[key], headers=_headers(key)))
            self.check(process, everything=True)
            assert process.client.get("/api/log/verify").json()["ok"]
            process.signal(signal.SIGTERM)
            assert process.wait() == 0

    def _start(self, *, listens: bool = True) -> Process:
        roots = str(Path(self.imports[0]).parent)
        if self.with_model:
            return Process(self.data, "--import-root", roots, listens=listens)
        return Process(
            self.data,
            command=("sae_actor", "serve", "--port", "0", "--data-dir", str(self.data)),
            environment={"SAE_ACTOR_HUB_IMPORT_ROOTS": roots},
            listens=listens,
        )

    def _killed_while_starting(self) -> None:
        """At a moment from the opening of the log to a little after it listens."""
        recent = self.restarts[-5:]
        with self._start(listens=False) as process:
            time.sleep(self.chance.uniform(0.5, 1.1) * sum(recent) / len(recent))
            process.signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        self.early += 1

    # — load —

    async def _load(self, process: Process) -> None:
        """Senders at once, each one command after the other, until the process is gone."""
        limits = httpx.Limits(max_connections=SENDERS, max_keepalive_connections=SENDERS)
        async with httpx.AsyncClient(base_url=process.url, timeout=30, limits=limits, verify=False) as client:
            senders = [asyncio.create_task(self._sender(client, number)) for number in range(SENDERS)]
            await asyncio.sleep(self.chance.uniform(0.0, self.seconds))
            process.signal(signal.SIGKILL)
            await asyncio.gather(*senders)

    async def _sender(self, client: httpx.AsyncClient, number: int) -> None:
        again = sorted(self.unanswered)[number::SENDERS]
        for count in itertools.count():
            key = again[count] if count < len(again) else f"{self.kills}-{number}-{count}"
            command = self.sent.setdefault(key, self._command())
            self.unanswered.add(key)
            try:
                answer = await client.post("/api/commands", json=command, headers=_headers(key))
            except httpx.TransportError:
                return
            self._note(key, answer)

    def _command(self) -> Answer:
        chance, number = self.chance, self.chance.randrange(len(self.imports))
        sae_id = self.sae_ids[number]
        commands: list[Answer] = [
            *[{"type": "Import", "path": self.imports[number]}] * 6,
            *[{"type": "Delete", "sae_id": sae_id}] * 2,
            {"type": "CancelDownload", "sae_id": sae_id},
        ]
        if self.with_model:
            edit = {"feature": chance.randrange(2), "strength": chance.uniform(-9, 9)}
            commands += [
                {"type": "LoadModel", "model": "tiny"},
                {"type": "Attach", "sae_id": sae_id, "replace": chance.random() < 0.7},
                {"type": "Attach", "sae_id": sae_id, "layer": chance.randrange(30), "replace": True},
                {"type": "Detach", "sae_id": sae_id},
                *[{"type": "Steer", "sae_id": sae_id, "features": [edit]}] * 4,
                {"type": "Monitor", "sae_id": sae_id, "enabled": chance.random() < 0.7, "top_k": 3},
            ]
        return chance.choice(commands)

    def _note(self, key: str, answer: httpx.Response) -> None:
        self.unanswered.discard(key)
        if answer.status_code in (200, 202):
            self.acknowledged[key] = answer.json()
        else:
            assert answer.status_code in (404, 409, 422), answer.text
            self.refused += 1

    # — what must hold —

    def check(self, process: Process, *, everything: bool = False) -> None:
        """The chain, no gap, what was read before unchanged, the live state, and every acknowledged command."""
        state = process.client.get("/api/state").json()
        self._read(process, state["position"])
        # The walk over the whole chain was the start itself; the verifier of an export does it once more at the end.
        assert [event["position"] for event in self.events] == list(range(1, len(self.events) + 1))
        assert self.books.view() == state, "the state is not the fold of the log"
        by_command: dict[str, list[Answer]] = {}
        for event in self.events:
            if event["command_id"] is not None and event["type"] != "CommandRejected":
                by_command.setdefault(event["command_id"], []).append(event)
        lost = [key for key, answer in self.acknowledged.items() if not _kept(answer, by_command)]
        assert lost == [], f"{len(lost)} acknowledged commands are lost or other than they were"
        for command_id, events in by_command.items():
            assert sum(event["type"] in INTENTS for event in events) == 1, f"{command_id} had more than one effect"
        asked = list(self.acknowledged) if everything else self.chance.sample(
            list(self.acknowledged), min(5, len(self.acknowledged)))  # fmt: skip
        for key in asked:
            self._same_outcome(process, key)

    def _read(self, process: Process, until: int) -> None:
        """Events up to this position; the last ones of the life before are read once more."""
        known = max(0, len(self.events) - 20)
        again = self.events[known:]
        while known < until:
            limit = min(PAGE, until - known)
            page = process.client.get("/api/log", params={"after": known, "limit": limit}).json()["events"]
            for event in page:
                if again:
                    assert event == again.pop(0), "an event that was read is another one now"
                    continue
                self.events.append(event)
                self.books.enter(event)
            assert page, f"event {known + 1} is missing"
            known = page[-1]["position"]
        assert not again, "events that were read are gone"

    def _same_outcome(self, process: Process, key: str) -> None:
        before = self.acknowledged[key]
        repeated = process.client.post("/api/commands", json=self.sent[key], headers=_headers(key))
        asked = process.client.get(f"/api/commands/{before['command_id']}")
        for now in (repeated.json(), asked.json()):
            for name in ("command_id", "position"):
                assert now[name] == before[name], (key, before, now)
            if before["status"] != "accepted" and now["status"] != "accepted":
                assert now == before, "the outcome is another one"
            assert before["status"] == "accepted" or now["status"] == before["status"]

    def told(self) -> str:
        usual = sorted(self.restarts)[len(self.restarts) // 2]
        return (
            f"{self.kills} kills ({self.early} of them during a start), {len(self.events)} events, "
            f"{len(self.acknowledged)} commands acknowledged, {self.refused} refused, lost = 0; "
            f"median start {usual:.2f} s"
        )


def _headers(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key, "Prefer": "wait=20"}


def _kept(answer: Answer, by_command: dict[str, list[Answer]]) -> bool:
    """The events that the answer was made of are on record, where they were."""
    events = by_command.get(answer["command_id"], [])
    if not events or events[0]["position"] != answer["position"]:
        return False
    own = [event for event in answer.get("events", ()) if event["command_id"] == answer["command_id"]]
    return all(event in events for event in own)
