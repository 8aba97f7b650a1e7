"""An SAE of the tests of hooks."""

from __future__ import annotations

import pytest

from sae_actor.sae import SAE, load_sae
from tests.engine.tiny import save_tiny_sae


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> SAE:
    return load_sae(save_tiny_sae(tmp_path_factory.mktemp("sae")), dtype="float32")
