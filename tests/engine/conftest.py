"""Engines and small models for the tests of this room."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import constants

from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.ports import Engine
from tests.engine.asking import attach, load, no_progress
from tests.engine.tiny import save_tiny_model, save_tiny_sae
from tests.fakes.engine import FakeEngine


@dataclass
class Given:
    """An engine with a model, and where to find its SAE."""

    engine: Engine
    model: str
    sae: str
    control: str = "<|end|>"
    """How its token 256, which ends and begins texts, is written."""

    async def ids(self, text: str = "hello world") -> tuple[int, ...]:
        return (await self.engine.tokenize(text)).token_ids

    async def attach(self, at: int) -> int:
        return (await self.engine.attach(attach(at), self.sae)).device_bytes


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests ask no hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random llama: 3 blocks, width 32, 260 tokens, context 128, chat template."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random ReLU SAE for resid_post.1 of the tiny models: d_in 32, d_sae 24."""
    return save_tiny_sae(tmp_path_factory.mktemp("sae") / "tiny-sae")


@pytest.fixture
def copied(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny llama to be damaged."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
async def engine(tiny_llama: Path) -> AsyncIterator[TorchEngine]:
    """With the tiny llama, no SAE on it."""
    engine = TorchEngine(EngineSettings(threads=1))
    await engine.load_model(load(str(tiny_llama)), no_progress)
    yield engine
    await engine.close()


@pytest.fixture(params=["fake", "torch"])
async def empty(request: pytest.FixtureRequest, tiny_llama: Path, tiny_sae: Path) -> AsyncIterator[Given]:
    """Each engine that there is, without a model."""
    engine: Engine
    if request.param == "fake":
        engine = FakeEngine(
            max_running=2, max_waiting=3, hidden_size=32, num_layers=3, step_seconds=0.001, drain_seconds=0.05
        )
    else:
        engine = TorchEngine(EngineSettings(max_running=2, max_waiting=3, threads=1, drain_seconds=0.05))
    control = "<end>" if request.param == "fake" else "<|end|>"
    yield Given(engine, str(tiny_llama), str(tiny_sae), control)
    await engine.close()


@pytest.fixture
async def given(empty: Given) -> Given:
    """With the model loaded."""
    await empty.engine.load_model(load(empty.model), no_progress)
    return empty
