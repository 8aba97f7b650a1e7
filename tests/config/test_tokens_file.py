"""Tokens and their lines: where they come from, what a line may say, what is refused and not repeated."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sae_actor.config import ConfigurationError, checks, load
from sae_actor.config.access import Access, read_line
from sae_actor.limits import Quota

ROOT = Path(__file__).parents[2]
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
    readme = (ROOT / "README.md").read_text("utf-8")
    (command,) = re.findall(r"^ *sae-actor (token alice .*) --file tokens$", readme, re.MULTILINE)
    file = tmp_path / "tokens"
    words = [sys.executable, "-m", "sae_actor", *command.split(), "--file", str(file)]
    token = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout
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
