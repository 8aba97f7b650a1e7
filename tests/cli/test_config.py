"""Settings: what wins over what, what is refused, and that `config.toml` documents exactly what there is."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from sae_actor import config
from sae_actor.config import ConfigurationError, Settings, load

SHIPPED = Path(__file__).parents[2] / "config.toml"


def test_shipped_file_is_the_built_in_values() -> None:
    shipped = tomllib.loads(SHIPPED.read_text())
    built_in = msgspec.json.decode(msgspec.json.encode(Settings()))
    assert shipped == built_in
    assert [list(keys) for keys in shipped.values()] == [list(keys) for keys in built_in.values()]
    assert load(file=SHIPPED, environment={}) == Settings() == load(environment={})


def test_every_key_has_its_comment() -> None:
    lines = SHIPPED.read_text().splitlines()
    keys = [i for i, line in enumerate(lines) if re.match(r"\w+ = ", line)]
    assert len(keys) == len(config._TYPES)
    assert all(lines[i - 1].startswith("# ") for i in keys)


def test_flags_over_environment_over_file_over_built_in(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('[server]\nhost = "127.0.0.2"\nport = 1001\n[data]\ndir = "/from/file"\n')
    environment = {"SAE_ACTOR_SERVER_PORT": "1002", "SAE_ACTOR_SERVER_HOST": "127.0.0.3"}
    settings = load({"server.port": 1003}, file=file, environment=environment)
    assert (settings.server.port, settings.server.host, settings.data.dir) == (1003, "127.0.0.3", "/from/file")
    assert settings.engine == Settings().engine


def test_the_file_comes_from_the_flag_or_else_the_environment_and_never_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("[server]\nport = 1\n")
    (tmp_path / "named.toml").write_text("[server]\nport = 2\n")
    monkeypatch.chdir(tmp_path)
    assert load(environment={}).server.port == 8000
    assert load(environment={"SAE_ACTOR_CONFIG": ""}).server.port == 8000
    named = {"SAE_ACTOR_CONFIG": str(tmp_path / "named.toml")}
    assert load(environment=named).server.port == 2
    assert load(file=tmp_path / "config.toml", environment=named).server.port == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[server]\nprot = 1", "server.prot: no such key"),
        ("[sever]\nport = 1", "sever: no such section"),
        ("port = 1", "port: no such section"),
        ('[server]\nport = "1"', "server.port: Expected `int`, got `str`"),
        ("[server]\nport = true", "server.port: Expected `int`, got `bool`"),
        ("[server]\nport = 65536", "server.port: "),
        ('[server]\nhost = ""', "server.host: "),
        ('[server]\ntoken = "two words"', "server.token: "),
        ("[engine]\ndrain_seconds = -1", "engine.drain_seconds: "),
        ("[engine]\ndrain_seconds = nan", "engine.drain_seconds: "),
        ("[engine]\ndrain_seconds = inf", "engine.drain_seconds: "),
        ("[gpu]\nmax_attachments = 0", "gpu.max_attachments: "),
        ('[hub]\nimport_roots = "/a"', "hub.import_roots: Expected `array`, got `str`"),
        ('[model]\ndtype = "float8"', "model.dtype: "),
        ('[model]\nid = "a\\nb"', "model.id: "),
        ('[audit]\nrecord_text = "yes"', "audit.record_text: Expected `bool`, got `str`"),
        ("[server", "not TOML"),
        ("[server]\nport = 1\nport = 2", "not TOML"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=re.escape(named)):
        load(file=file, environment={})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.toml: No such file"):
        load(file=tmp_path / "gone.toml", environment={})


def test_the_environment_is_read_by_type() -> None:
    settings = load(
        environment={
            "SAE_ACTOR_ENGINE_DRAIN_SECONDS": "0.5",
            "SAE_ACTOR_GPU_MAX_ATTACHMENTS": "2",
            "SAE_ACTOR_AUDIT_RECORD_TEXT": "false",
            "SAE_ACTOR_HUB_IMPORT_ROOTS": "/a:/b c:",
            "SAE_ACTOR_MODEL_ID": "",
            "SAE_ACTOR_SERVER_TOKEN": "12345",
            "SAE_ACTOR_URL": "http://elsewhere",
            "SAE_ACTOR_TOKEN": "the client's",
            "SAE_ACTOR_SERVICE_HOST": "10.0.0.1",
            "OTHER": "x",
        }
    )
    assert (settings.engine.drain_seconds, settings.gpu.max_attachments) == (0.5, 2)
    assert settings.hub.import_roots == ("/a", "/b c")
    assert settings.server.token == "12345"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SAE_ACTOR_SERVER_PORT", "http"),
        ("SAE_ACTOR_SERVER_PORT", ""),
        ("SAE_ACTOR_AUDIT_RECORD_TEXT", "maybe"),
        ("SAE_ACTOR_SERVER_PROT", "1"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        load(environment={variable: value})


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.data_folder(Settings()) == tmp_path / "data/sae-actor"
    assert config.data_folder(Settings(), demo=True) == tmp_path / "data/sae-actor/demo"
    assert config.demo_model_folder(Settings()) == tmp_path / "cache/sae-actor/demo"
    own = load({"data.dir": "~/own", "demo.model_dir": "~/model"}, environment={})
    assert config.data_folder(own, demo=True) == tmp_path / "own"
    assert config.demo_model_folder(own) == tmp_path / "model"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert config.data_folder(Settings()) == tmp_path / ".local/share/sae-actor"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"])
def test_a_loopback_host_needs_no_token(host: str) -> None:
    config.check_exposure(load({"server.host": host}, environment={}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org"])
def test_another_host_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"server\.host"):
        config.check_exposure(load({"server.host": host}, environment={}))
    config.check_exposure(load({"server.host": host, "server.token": "secret"}, environment={}))
