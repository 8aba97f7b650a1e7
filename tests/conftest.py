"""Fixtures of the whole suite."""

import os
import signal
from pathlib import Path

import pytest

from sae_actor.demo import SAE_FOLDER
from sae_actor.demo.model import prepare_model
from tests.environments import is_locked

# Tests run two at a time, and most with small tensors: threads of both, spinning next to each other, take minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it runs in the background without Ctrl-C, and children inherit that: those that a test
    # interrupts would never end.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """With the versions of the lock nothing new can be said by a library: there every warning is an error."""
    if is_locked():
        config.addinivalue_line("filterwarnings", "error")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes minutes runs only where it is asked for by its marker."""
    asked = config.getoption("markexpr")
    names = [name for name in ("clients", "crash", "fuzz", "long") if name not in asked]
    long = [item for item in items if any(item.get_closest_marker(name) for name in names)]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, prepared once into a cache that survives test runs.

    Tests with it carry the marker `model`.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-actor-tests"
    return prepare_model(cache, lambda *_: None)


@pytest.fixture(scope="session")
def demo_sae() -> Path:
    """The folder of the bundled SAE (d_in 576, d_sae 2304, resid_post.15), as it ships in the package."""
    return SAE_FOLDER
