"""One log of real texts for the tests of this room, and the command that runs them again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from huggingface_hub import constants
from msgspec.structs import replace

from sae_actor.domain.chats import Tokenization
from sae_actor.domain.messages import RequestedStop
from sae_actor.domain.refs import Span
from tests.cli.conftest import Ran, bare_environment, command
from tests.engine.tiny import save_tiny_model, save_tiny_sae
from tests.reproducing.making import SAMPLED, View, edit, recording

__all__ = ["bare_environment", "command"]

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]


class Log(NamedTuple):
    """A log of texts, and the files that they ran on."""

    folder: Path
    model: Path
    sae: Path
    texts: dict[str, str]
    """What is told of each → its generation id."""
    sae_id: str


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """One life of a service with texts under everything that an intervention can be."""
    home = tmp_path_factory.mktemp("reproduced")
    model, sae = save_tiny_model(home / "model"), save_tiny_sae(home / "sae")
    other = save_tiny_sae(home / "other", hook="blocks.2.hook_resid_pre", seed=3)
    texts: dict[str, str] = {}

    async def live() -> str:
        async with recording(home / "log", model) as service:

            async def say(name: str, *arguments: Any, **asked: Any) -> None:
                texts[name], _ = await service.say(*arguments, **asked)

            await say("nothing attached")
            sae_id = await service.attach(sae)
            await say("nothing steered", "hello", SAMPLED)
            await service.steer(sae_id, edit(3, 30.0), edit(5, 0.0, method="scale", exclude=("sink",)))
            await say("greedy")
            await say("sampled", "a longer prompt of some words", SAMPLED)
            await say("baseline", baseline=True)
            own = (edit(7, -20.0, positions="generated"), edit(2, 4.0, method="set", positions=Span(from_=1, to=3)))
            await say("own steering", "hello", replace(SAMPLED, top_p=1.0, temperature=1.3), steering=own)
            role = (edit(4, 25.0, positions=Span(role="user"), exclude=("template",)),)
            await say("chat by role", CHAT, steering=role)
            await say("read as text", "<|end|>hello", how=Tokenization(prepend_bos=True, parse_special=False))
            await say("stopped by a feature", "hello", stop_when=RequestedStop(feature=0, above=-1.0))
            await say("stop text", "hello", replace(SAMPLED, stop=("e", "a", "t", "\n", " ")))
            await say("deterministic", "hello", SAMPLED, deterministic=True)
            second = await service.attach(other)
            await service.steer(second, edit(1, 12.0, method="project"))
            await say("two SAEs", "hello", SAMPLED)
            await service.detach(sae_id)
            await say("after a detach", "hello", SAMPLED)
            await service.detach(second)
            await service.attach(sae, layer=2, mode="reconstruct")
            await say("reconstructed elsewhere")
            return sae_id

    sae_id = anyio.run(live)
    return Log(home / "log", model, sae, texts, sae_id)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class OfHub(NamedTuple):
    """A text of a model that lies in the hub's cache, at `COMMIT`."""

    folder: Path
    """The data folder."""
    repository: Path
    text: str


@pytest.fixture
def of_hub(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OfHub:
    repository, folder = tmp_path / "cache" / "models--org--tiny", tmp_path / "log"
    shutil.copytree(log.model, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")

    async def live() -> str:
        async with recording(folder, Path("org/tiny")) as service:
            return (await service.say())[0]

    return OfHub(folder, repository, anyio.run(live))


Reproduce = Callable[..., tuple[int, list[View]]]


@pytest.fixture
def reproduce(command: Callable[..., Ran]) -> Reproduce:
    def run(folder: Path, *argv: str) -> tuple[int, list[View]]:
        ran = command("log", "reproduce", *argv, "--json", "--data-dir", str(folder))
        assert ran.err == ""
        return ran.code, [json.loads(line) for line in ran.out.splitlines()]

    return run
