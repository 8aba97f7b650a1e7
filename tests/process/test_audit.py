"""200 texts over HTTP in random order, with attaches, detaches and steers between them: then the log alone is asked."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from sae_actor.cli.render.explanation import explanation
from sae_actor.domain.events import Event
from sae_actor.domain.views.explanation import Explaining
from tests.cli.conftest import Ran, bare_environment, command
from tests.engine.tiny import save_tiny_model, save_tiny_sae
from tests.fold_by_hand import views
from tests.process.harness import Process

__all__ = ["bare_environment", "command"]

TEXTS = 200
AT_ONCE = 4
View = dict[str, Any]


class Clients:
    """Several clients at once: each asks for texts, and now and then changes something for everyone."""

    def __init__(self, client: httpx.AsyncClient, saes: list[str], seed: int) -> None:
        self._client = client
        self._saes = saes
        self._dice = random.Random(seed)
        self.answered: list[tuple[View, View]] = []
        """(what was asked for in `sae`, the answer)."""
        self.changed: dict[str, int] = {}

    async def work(self) -> None:
        while len(self.answered) < TEXTS:
            await (self._change() if self._dice.random() < 0.25 else self._ask())

    def _edits(self) -> list[View]:
        dice = self._dice
        return [
            {
                "feature": feature,
                "strength": round(dice.uniform(-30, 30), 2),
                "method": dice.choice(["add", "add", "scale", "project"]),
                "positions": dice.choice(["all", "prompt", "generated", "response", {"from": 1, "to": 4}]),
                "exclude": dice.choice([[], ["sink"]]),
            }
            for feature in dice.sample(range(24), dice.randint(0, 3))
        ]

    async def _change(self) -> None:
        sae_id = self._dice.choice(self._saes)
        path, kind = f"/api/saes/{sae_id}", self._dice.choice(["attach", "detach", "steer", "steer"])
        if kind == "steer":
            body = {"features": self._edits(), "enabled": self._dice.random() < 0.9}
            answer = await self._client.put(f"{path}/steering", json=body)
        else:
            mode = self._dice.choice(["steer", "steer", "reconstruct"])
            answer = await self._client.post(f"{path}/{kind}", json={"mode": mode} if kind == "attach" else None)
        assert answer.status_code in (200, 409), answer.text
        if answer.status_code == 200:
            self.changed[kind] = self.changed.get(kind, 0) + 1

    async def _ask(self) -> None:
        dice = self._dice
        own: View = dice.choice([{}, {}, {}, {"baseline": True}, {"steering": []}, {"steering": self._edits()}])
        body = {
            "prompt": "".join(dice.choices("abcdefgh ", k=dice.randint(3, 12))),
            "max_tokens": dice.randint(2, 5),
            "temperature": dice.choice([0, 0.8, 1.5]),
            "top_p": dice.choice([1, 0.9]),
            "sae": own,
        }
        answer = await self._client.post("/v1/completions", json=body)
        if answer.status_code == 200:
            self.answered.append((own, answer.json()))
        else:
            # Of two attached SAEs edits in short form name none; of none they name none either.
            assert answer.json()["error"]["code"] in ("sae_ambiguous", "sae_not_attached"), answer.text


async def live(url: str, saes: list[str]) -> Clients:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        clients = Clients(client, saes, seed=12)
        await asyncio.gather(*(clients.work() for _ in range(AT_ONCE)))
        return clients


def expected(own: View, attachments: list[View]) -> list[View]:
    """The intervention that the books come to for a request, as the answer tells it."""
    if own.get("baseline"):
        return []

    def edits(attachment: View) -> list[View]:
        if "steering" not in own:
            steering: list[View] = attachment["steering"] if attachment["steering_enabled"] else []
            return steering
        whole = {"unit": "raw", "sae_id": None, "when": None}
        return [{**edit, **whole} for edit in own["steering"]]

    return [
        {name: each[name] for name in ("sae_id", "hook_point", "mode")} | {"steering": edits(each)}
        for each in attachments
    ]


def told(answer: View) -> list[View]:
    found = answer["sae"]["interventions"]
    return [{name: value for name, value in each.items() if not name.startswith("weights_")} for each in found]


@pytest.mark.timeout(300)
def test_the_log_tells_and_reproduces_every_text(tmp_path: Path, command: Callable[..., Ran]) -> None:
    model = save_tiny_model(tmp_path / "model")
    saes = [save_tiny_sae(tmp_path / "one"), save_tiny_sae(tmp_path / "two", hook="blocks.2.hook_resid_pre", seed=3)]
    settings = {
        "SAE_ACTOR_ENGINE_THREADS": "1",
        "SAE_ACTOR_AUDIT_RECORD_TEXT": "true",
        "SAE_ACTOR_GPU_MAX_ATTACHMENTS": "2",
    }
    data = tmp_path / "data"
    with Process(data, "--torch", "--import-root", str(tmp_path), environment=settings) as process:
        process.client.timeout = httpx.Timeout(60)
        process.send("model", type="LoadModel", model=str(model), device="cpu")
        process.until_ready(100)
        imported = [process.send(str(sae), type="Import", path=str(sae)) for sae in saes]
        ids = [each["events"][0]["data"]["sae_id"] for each in imported]
        clients = asyncio.run(live(process.url, ids))
        assert set(clients.changed) == {"attach", "detach", "steer"}
        assert sum(clients.changed.values()) > 20
        process.signal(signal.SIGINT)
        assert process.wait() == 0

    # Which intervention each ran under is what the log comes to, worked out by hand and by the package.
    shown = command("log", "show", "--json", "--data-dir", str(data))
    lines = shown.out.splitlines()
    books = {position: view["attachments"] for position, view in views(lines)}
    wanted = Explaining()
    for line in lines:
        wanted.feed(msgspec.json.decode(line, type=Event))
    explained = {view["generation_id"]: view for view in map(msgspec.to_builtins, wanted.views.values())}
    assert len(explained) == len(clients.answered) >= TEXTS
    steered = 0
    for own, answer in clients.answered:
        view = explained[answer["sae"]["generation_id"]]
        assert told(answer) == expected(own, books[answer["sae"]["position"]])
        assert view["digest"]["agrees"]
        assert view["digest"]["state_agrees"]
        assert view["intervention_sha256"] == answer["sae"]["intervention_sha256"]
        assert view["receipt"] == answer["sae"]["receipt"]
        assert view["text"] == answer["choices"][0]["text"]
        steered += answer["sae"]["receipt"]["tokens_edited"] > 0
    assert steered > TEXTS / 4

    # It says so in words (the command itself is asked for some); and run again, every text has the same tokens.
    verified = json.loads(command("log", "verify", "--json", "--data-dir", str(data)).out)
    words = {name: explanation({**view, "log": verified}) for name, view in explained.items()}
    assert all("the recorded intervention matches the events before it" in each for each in words.values())
    for name in list(explained)[::20]:
        assert command("log", "explain", name, "--data-dir", str(data)) == (0, words[name] + "\n", "")
    ran = command("log", "reproduce", "--all", "--json", "--data-dir", str(data))
    verdicts = [json.loads(line) for line in ran.out.splitlines()]
    assert {view["generation_id"] for view in verdicts} == set(explained)
    # A detach may come between the admission of a text and its first token.
    empty = {name for name, view in explained.items() if view["receipt"]["tokens_generated"] == 0}
    assert all(explained[name]["finish_reason"] == "intervention_removed" for name in empty)
    made = [view for view in verdicts if view["generation_id"] not in empty]
    assert len(made) >= TEXTS - 5
    assert [view for view in made if view["verdict"] != "identical" or not view["positions_agree"]] == []
    assert [view["verdict"] for view in verdicts if view not in made] == ["not_comparable"] * len(empty)
    assert ran.code == (69 if empty else 0)
