"""What the settings come to: found out once, and the same for all who ask for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sae_actor.config import ConfigurationError, Deployment, load, resolve
from sae_actor.domain.commands import LoadModel


def resolved(**server: object) -> Deployment:
    return resolve(load({f"server.{name}": value for name, value in server.items()}, environment={}))


def test_the_token_is_known_by_its_digest_alone() -> None:
    deployment = resolved(token="secret-canary")
    assert deployment.settings.server.token == ""
    assert [grant.digest for grant in deployment.access.grants] == [hashlib.sha256(b"secret-canary").digest()]
    assert "secret-canary" not in repr(deployment)


def test_the_file_of_tokens_is_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"alice operator {hashlib.sha256(b'a').hexdigest()}")
    file.chmod(0o600)
    deployment = resolved(host="0.0.0.0", tokens_file=str(file))
    file.unlink()
    assert [grant.name for grant in deployment.access.grants] == ["alice"]
    with pytest.raises(ConfigurationError, match="tokens_file"):
        resolve(deployment.settings)


OWN = ("localhost", "127.0.0.1", "[::1]")


@pytest.mark.parametrize(
    ("server", "hosts"),
    [
        ({"host": "127.0.0.1"}, (*OWN, "127.0.0.1")),
        ({"host": "::1"}, (*OWN, "[::1]")),
        ({"host": "::1", "hosts": ["sae.example"]}, (*OWN, "[::1]", "sae.example")),
        ({"host": "0.0.0.0", "token": "x"}, ("*",)),
        ({"host": "0.0.0.0", "token": "x", "hosts": ["sae.example"]}, (*OWN, "0.0.0.0", "sae.example")),
    ],
)
def test_hosts_that_a_request_may_name(server: dict[str, object], hosts: tuple[str, ...]) -> None:
    assert resolved(**server).hosts == hosts


def test_the_address() -> None:
    deployment = resolved()
    assert deployment.tls is None
    assert deployment.url("127.0.0.1", 8000) == "http://127.0.0.1:8000"
    assert deployment.url("::1", 9) == "http://[::1]:9"


def test_the_demo_has_its_own_folders_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    settings = load({"model.id": "org/name", "demo.model_dir": str(tmp_path / "model")}, environment={})
    plain, demo = resolve(settings), resolve(settings, demo=True)
    assert (plain.folder, plain.demo_model, plain.model) == (tmp_path / "data/sae-actor", None, LoadModel("org/name"))
    assert demo.folder == tmp_path / "data/sae-actor/demo"
    assert (demo.demo_model, demo.model) == (tmp_path / "model", None)


def test_a_revision_that_leads_out_of_a_folder_is_no_revision() -> None:
    with pytest.raises(ConfigurationError, match=r"model\.revision: revision is not the name of a branch"):
        resolve(load({"model.id": "org/name", "model.revision": "a..b"}, environment={}))
