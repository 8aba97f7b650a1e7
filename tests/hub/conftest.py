"""A fake hub on loopback and a real adapter that talks to it, with short patience."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sae_actor.domain.effects import DownloadEffect
from sae_actor.domain.state import SaeLocation
from sae_actor.domain.weights import sae_id_of
from sae_actor.hub import HuggingFaceHub, Patience
from sae_actor.ports import HubSae, Progress
from tests.fakes.hub_handler import SIGNATURE
from tests.fakes.hub_server import HubServer

TOKEN = "hf_tokencanary2718281828"
"""A canary: no test may find it where it does not belong."""

QUICK = Patience(
    request_seconds=3.0,
    stall_seconds=0.7,
    slow_seconds=0.6,
    slow_bytes=10_000,
    backoff_seconds=0.02,
    backoff_cap_seconds=0.3,
    tries=4,
    worthwhile_bytes=1 << 14,
)

MakeHub = Callable[..., HuggingFaceHub]


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture(autouse=True)
def no_secret_is_left(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Row 72: no token and no signed address in any file, name or output, whatever the test did."""
    yield
    out, err = capfd.readouterr()
    for secret in (TOKEN, SIGNATURE):
        assert secret not in out + err
        for path in tmp_path.rglob("*"):
            assert secret not in path.name
            if path.is_file() and path.stat().st_size < 1 << 20:
                assert secret.encode() not in path.read_bytes(), path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data folder's hub/."""
    return tmp_path / "data" / "hub"


def real_hub(server: HubServer, tmp_path: Path, **changes: Any) -> HuggingFaceHub:
    """The adapter against the fake hub; keywords replace its settings, `env` adds to its environment."""
    (tmp_path / "imports").mkdir(exist_ok=True)
    (tmp_path / "home").mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": TOKEN,
        "SAE_ACTOR_TOKEN": "service-token-canary",
        **changes.pop("env", {}),
    }
    settings = {
        "import_roots": [tmp_path / "imports"],
        "environment": environment,
        "patience": QUICK,
        "silence_seconds": 20.0,
        "reserve_bytes": 0,
    }
    return HuggingFaceHub(tmp_path / "data" / "hub", **{**settings, **changes})


@pytest.fixture
def make_hub(server: HubServer, tmp_path: Path) -> MakeHub:
    return partial(real_hub, server, tmp_path)


@pytest.fixture
def hub(make_hub: MakeHub) -> HuggingFaceHub:
    return make_hub()


def download(
    repository_id: str = "org/saes",
    path: str | None = None,
    *,
    revision: str = "main",
    at: int = 1,
    force: bool = False,
) -> DownloadEffect:
    """The effect of a Download command whose intent is at position `at`."""
    return DownloadEffect(
        request_position=at,
        sae_id=sae_id_of(repository_id, path, revision),
        repository_id=repository_id,
        revision=revision,
        path=path,
        force=force,
    )


def located(effect: DownloadEffect, found: HubSae) -> SaeLocation:
    """Where that download brought its SAE."""
    return SaeLocation(
        source="hub",
        repository_id=effect.repository_id,
        commit=found.commit,
        path=effect.path,
        files=found.files,
    )


class Told:
    """A progress callback that remembers."""

    def __init__(self) -> None:
        self.messages: list[Progress] = []

    def __call__(self, message: Progress) -> None:
        assert message.kind == "download"
        assert TOKEN not in str(message)
        assert SIGNATURE not in str(message)
        self.messages.append(message)

    @property
    def phases(self) -> set[str]:
        return {message.phase for message in self.messages}


def files_below(folder: Path) -> set[str]:
    """Every file and link below `folder`, relative."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_symlink() or p.is_file()}
