"""Settings: what wins over what, what is refused, and that `config.toml` documents exactly what there is."""

import hashlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from sae_actor.config import ConfigurationError, Settings, checks, folders, load, loading
from sae_actor.config.access import Access, read_line
from sae_actor.limits import Quota

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


DIGEST = hashlib.sha256(b"alice's token").hexdigest()


def test_tokens_from_the_file_the_settings_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# who may what\n\nalice viewer {DIGEST}\n  bob@lab operator {'A' * 64}  \n")
    file.chmod(0o600)
    environment = {
        "SAE_ACTOR_SERVER_TOKENS_FILE": str(file),
        "SAE_ACTOR_SERVER_TOKENS": f"carol viewer {'b' * 64}, dave operator {'c' * 64}",
        "SAE_ACTOR_SERVER_TOKEN": "shared",
    }
    found = checks.grants(load(environment=environment))
    assert [(each.name, each.role) for each in found] == [
        ("token", "operator"), ("carol", "viewer"), ("dave", "operator"), ("alice", "viewer"), ("bob@lab", "operator"),
    ]  # fmt: skip
    assert found[0].digest == hashlib.sha256(b"shared").digest()
    known = Access(found)
    assert known.of(b"alice's token") == found[3]
    assert known.of(b"alice's toke") is None
    assert known.of(b"") is None
    assert not any("shared" in repr(each) or "alice's" in repr(each) for each in found)


def test_fields_of_a_line() -> None:
    assert read_line(f"alice user {DIGEST}").presets is None
    assert read_line(f"alice user {DIGEST} presets=calm,a.b_c-9,calm").presets == ("calm", "a.b_c-9")
    assert read_line(f"vera viewer {DIGEST}").sae is None
    assert read_line(f"vera viewer {DIGEST} sae=org-saes-a-main-190766e6").sae == "org-saes-a-main-190766e6"
    assert read_line(f"uma user {DIGEST}").quota == Quota()
    assert read_line(f"uma user {DIGEST} waiting=0 running=4").quota == Quota(running=4, waiting=0)
    limited = read_line(f"olga operator {DIGEST} tokens_per_minute=60000")
    assert limited.quota == Quota(tokens_per_minute=60000)
    assert Access([limited]).quotas == {"olga": limited.quota}


def test_every_token_is_compared_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 71: whoever asks, with whatever, the same comparisons are made."""
    found = Access(read_line(f"n{n} viewer {hashlib.sha256(b'token %d' % n).hexdigest()}") for n in range(20))
    compared: list[int] = []

    def counting(one: bytes, other: bytes) -> bool:
        compared.append(len(one) + len(other))
        return one == other

    monkeypatch.setattr("sae_actor.config.access.hmac.compare_digest", counting)
    for token in (b"token 0", b"token 19", b"token", b"", b"x" * 100_000):
        compared.clear()
        found.of(token)
        assert compared == [64] * 20


def test_the_line_that_the_readme_s_command_makes(tmp_path: Path) -> None:
    readme = (SHIPPED.parent / "README.md").read_text("utf-8")
    (command,) = re.findall(r"^ *sae-actor (token alice .*) --file tokens$", readme, re.MULTILINE)
    file = tmp_path / "tokens"
    words = [sys.executable, "-m", "sae_actor", *command.split(), "--file", str(file)]
    token = subprocess.run(words, capture_output=True, text=True, check=True, cwd=SHIPPED.parent).stdout
    found = checks.grants(load({"server.tokens_file": str(file)}, environment={}))
    grant = Access(found).of(token.strip().encode())
    assert grant is not None
    assert (grant.name, grant.role, grant.quota) == ("alice", "user", Quota(running=4, waiting=32))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("alice", "line 1: must be a name"),
        (f"alice viewer {DIGEST} more", "line 1: alice: unknown field; what may follow the sha256 is presets=, sae="),
        (f"alice user {DIGEST} walking=4", "line 1: alice: unknown field"),
        (f"alice viewer {DIGEST} running=4", "line 1: alice: running= is for the role user or operator"),
        (f"alice user {DIGEST} running=0", "line 1: alice: running= must be a whole number from 1 to 999999999"),
        (f"alice user {DIGEST} waiting=-1", "line 1: alice: waiting= must be a whole number from 0"),
        (f"alice user {DIGEST} waiting=1_0", "line 1: alice: waiting= must be a whole number from 0"),
        (f"alice user {DIGEST} waiting=\u0664", "line 1: alice: waiting= must be a whole number from 0"),
        (f"alice user {DIGEST} tokens_per_minute=6e4", "line 1: alice: tokens_per_minute= must be a whole number"),
        (f"alice user {DIGEST} tokens_per_minute=1000000000", "line 1: alice: tokens_per_minute= must be a whole"),
        (f"alice user {DIGEST} running=04", "line 1: alice: running= must be a whole number"),
        (f"alice user {DIGEST} running=4 running=4", "line 1: alice: running= is given twice"),
        (f"alice viewer {DIGEST} presets=calm", "line 1: alice: presets= is for the role user"),
        (f"alice operator {DIGEST} presets=calm", "line 1: alice: presets= is for the role user"),
        (f"alice user {DIGEST} sae=a", "line 1: alice: sae= is for the role viewer"),
        (f"alice viewer {DIGEST} sae=", "line 1: alice: sae= must be the id of an SAE"),
        (f"alice viewer {DIGEST} sae=a sae=b", "line 1: alice: sae= is given twice"),
        (f"alice user {DIGEST} presets=", "line 1: alice: presets= must be names"),
        (f"alice user {DIGEST} presets=calm,,bold", "line 1: alice: presets= must be names"),
        (f"# first\nalice root {DIGEST}", "line 2: alice: the role must be one of viewer, user, operator"),
        (f"alice viewer {DIGEST[1:]}", "line 1: alice: the sha256"),
        ("alice viewer the-token-itself", "line 1: alice: the sha256"),
        (f"token viewer {DIGEST}", "line 1: the name token is reserved"),
        (f"system viewer {DIGEST}", "line 1: the name system is reserved"),
        (f"al\x1bice viewer {DIGEST}", "line 1: the name must be"),
        (f"alice viewer {DIGEST}\nalice operator {'0' * 64}", "alice: another token has this name"),
        (f"alice viewer {DIGEST}\nbob operator {DIGEST}", "bob: another token has this sha256"),
        ("# nobody\n", "does not hold a token"),
        ("x" * 70_000, "larger than"),
        ("\n".join(f"n{n} viewer {n:064x}" for n in range(257)), "257 tokens; at most 256 are allowed"),
    ],
)
def test_what_is_wrong_with_a_token_is_named_and_not_repeated(tmp_path: Path, line: str, named: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(line)
    file.chmod(0o600)
    with pytest.raises(ConfigurationError, match=re.escape(named)) as caught:
        checks.grants(load({"server.tokens_file": str(file)}, environment={}))
    assert "the-token-itself" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_file_of_tokens_that_others_may_open_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"alice viewer {DIGEST}")
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        checks.check_exposure(load({"server.tokens_file": str(file)}, environment={}))


def test_a_file_of_tokens_that_is_none(tmp_path: Path) -> None:
    for path, named in ((tmp_path / "gone", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigurationError, match=named):
            checks.grants(load({"server.tokens_file": str(path)}, environment={}))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "binary").chmod(0o600)
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        checks.grants(load({"server.tokens_file": str(tmp_path / "binary")}, environment={}))


@pytest.mark.parametrize("key", ["server.token", "server.tokens", "server.tokens_file"])
def test_any_kind_of_token_opens_another_host(tmp_path: Path, key: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"alice operator {DIGEST}")
    file.chmod(0o600)
    value = {"server.token": "x", "server.tokens": [f"alice viewer {DIGEST}"], "server.tokens_file": str(file)}[key]
    checks.check_exposure(load({"server.host": "0.0.0.0", key: value}, environment={}))


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
