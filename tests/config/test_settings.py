"""Settings: what wins over what, what is refused, and that `config.toml` documents exactly what there is."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from sae_actor.config import ConfigurationError, Settings, checks, folders, load, loading

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
    assert len(keys) == len(loading._TYPES)
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
        ('[server]\nport = "1"', "server.port: it must be a whole number from 0 to 65535"),
        ("[server]\nport = true", "server.port: it must be a whole number from 0 to 65535"),
        ("[server]\nport = 65536", "server.port: "),
        ('[server]\nhost = ""', "server.host: "),
        ('[server]\ntoken = "two words"', "server.token: "),
        ("[engine]\ndrain_seconds = -1", "engine.drain_seconds: it must be a number from 0 to 3600"),
        ("[engine]\ndrain_seconds = nan", "engine.drain_seconds: "),
        ("[engine]\ndrain_seconds = inf", "engine.drain_seconds: "),
        ("[gpu]\nmax_attachments = 0", "gpu.max_attachments: "),
        ('[hub]\nimport_roots = "/a"', "hub.import_roots: it must be a list, each of it text without"),
        ('[model]\ndtype = "float8"', "model.dtype: it must be auto, float32, float16 or bfloat16"),
        ('[model]\nid = "a\\nb"', "model.id: "),
        ('[audit]\nrecord_text = "yes"', "audit.record_text: it must be true or false"),
        ('[server]\nlog_level = "loud"', "server.log_level: it must be one of debug, error, info, warning"),
        ("[engine]\ndeadline_seconds = 0", "engine.deadline_seconds: it must be a number above 0 up to 86400"),
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


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("SAE_ACTOR_PORT", "SAE_ACTOR_SERVER_PORT"),
        ("SAE_ACTOR_SERVERPORT", "SAE_ACTOR_SERVER_PORT"),
        ("SAE_ACTOR_DIR", "SAE_ACTOR_DATA_DIR"),
        ("SAE_ACTOR_DATADIR", "SAE_ACTOR_DATA_DIR"),
        ("SAE_ACTOR_RECORD_TEXT", "SAE_ACTOR_AUDIT_RECORD_TEXT"),
        ("SAE_ACTOR_SERVER", "SAE_ACTOR_SERVER_PORT"),
        ("SAE_ACTOR_FOO", None),
    ],
)
def test_a_variable_that_sets_nothing_is_told_with_what_was_meant(variable: str, meant: str | None) -> None:
    load(environment={variable: "a secret"})
    hint = f"; did you mean {meant}?" if meant else ""
    assert loading.strangers({variable: "a secret"}) == [f"{variable} of the environment is not a setting{hint}"]


def test_an_unknown_key_of_a_section_is_refused_with_what_was_meant() -> None:
    with pytest.raises(ConfigurationError, match="did you mean SAE_ACTOR_SERVER_PORT"):
        load(environment={"SAE_ACTOR_SERVER_PROT": "1"})


def test_variables_of_others_are_left_alone() -> None:
    assert not loading.strangers(
        {
            "SAE_ACTOR_URL": "http://elsewhere",
            "SAE_ACTOR_TOKEN": "t",
            "SAE_ACTOR_CONFIG": "f",
            "SAE_ACTOR_SERVER_PORT": "1",
            "SAE_ACTOR_SERVICE_HOST": "10.0.0.1",
            "SAE_ACTOR_SERVICE_PORT": "80",
            "SAE_ACTOR_SERVICE_PORT_HTTP": "80",
            "SAE_ACTOR_PORT": "tcp://10.0.0.1:80",
            "SAE_ACTOR_PORT_80_TCP": "tcp://10.0.0.1:80",
            "SAE_ACTOR_PORT_80_TCP_ADDR": "10.0.0.1",
            "OTHER_PORT": "1",
        }
    )


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folders.data_folder(Settings()) == tmp_path / "data/sae-actor"
    assert folders.data_folder(Settings(), demo=True) == tmp_path / "data/sae-actor/demo"
    assert folders.demo_model_folder(Settings()) == tmp_path / "cache/sae-actor/demo"
    own = load({"data.dir": "~/own", "demo.model_dir": "~/model"}, environment={})
    assert folders.data_folder(own, demo=True) == tmp_path / "own"
    assert folders.demo_model_folder(own) == tmp_path / "model"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert folders.data_folder(Settings()) == tmp_path / ".local/share/sae-actor"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"])
def test_a_loopback_host_needs_no_token(host: str) -> None:
    checks.check_exposure(load({"server.host": host}, environment={}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org"])
def test_another_host_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"server\.host"):
        checks.check_exposure(load({"server.host": host}, environment={}))
    checks.check_exposure(load({"server.host": host, "server.token": "secret"}, environment={}))


def test_trusted_proxies_are_addresses() -> None:
    environment = {"SAE_ACTOR_SERVER_TRUSTED_PROXIES": "127.0.0.1, ::1,10.0.0.0/8"}
    settings = load(environment=environment)
    assert settings.server.trusted_proxies == ("127.0.0.1", "::1", "10.0.0.0/8")
    checks.check_exposure(settings)
    for wrong in ("proxy.example", "*", "10.0.0.1/8", "[::1]", "127.0.0.1:80", ""):
        with pytest.raises(ConfigurationError, match=r"server\.trusted_proxies"):
            checks.check_exposure(load({"server.trusted_proxies": [wrong]}, environment={}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cors_origins", "*"), ("cors_origins", "https://a.example/"), ("cors_origins", "null"),
        ("cors_origins", "https://A.example"), ("hosts", "a.example:80"), ("hosts", "*"), ("hosts", "https://a"),
        ("max_connections", "0"), ("request_seconds", "0"), ("stalled_seconds", "nan"), ("session_hours", "0"),
    ],
)  # fmt: skip
def test_settings_of_the_network_that_cannot_be(key: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"SAE_ACTOR_SERVER_{key.upper()}"):
        load(environment={f"SAE_ACTOR_SERVER_{key.upper()}": value})


def test_origins_and_hosts_are_separated_by_commas_in_the_environment() -> None:
    settings = load(
        environment={
            "SAE_ACTOR_SERVER_CORS_ORIGINS": "https://a.example:8443, http://[::1]:3000,",
            "SAE_ACTOR_SERVER_HOSTS": "a.example,[::1]",
        }
    )
    assert settings.server.cors_origins == ("https://a.example:8443", "http://[::1]:3000")
    assert settings.server.hosts == ("a.example", "[::1]")
