"""`token NAME ROLE`: a token, and its line. `token list`: who may do what, without a token or a digest."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from sae_actor.config import checks, load
from sae_actor.config.access import Access, read_line
from tests.cli.test_commands import Command

DIGESTS = [hashlib.sha256(b"secret %d" % n).hexdigest() for n in range(3)]


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    tokens = tmp_path / "tokens"
    tokens.write_text(
        f"olga operator {DIGESTS[0]} waiting=32 running=4\n"
        f"pia user {DIGESTS[1]} presets=calm,bold tokens_per_minute=60000\nvera viewer {DIGESTS[2]} sae=demo-1\n"
    )
    tokens.chmod(0o600)
    file = tmp_path / "config.toml"
    file.write_text(f'[server]\ntoken = "the-single-token"\ntokens_file = "{tokens}"\n')
    return file


def test_the_grants(command: Command, settings: Path) -> None:
    ran = command("token", "list", "--config", str(settings))
    assert ran.code == 0
    assert [line.split() for line in ran.out.splitlines()] == [
        ["NAME", "ROLE", "LIMITS"],
        ["token", "operator", "-"],
        ["olga", "operator", "running=4", "waiting=32"],
        ["pia", "user", "presets=calm,bold", "tokens_per_minute=60000"],
        ["vera", "viewer", "sae=demo-1"],
    ]
    listed = command("token", "list", "--config", str(settings), "--json")
    assert json.loads(listed.out)[1:3] == [
        {
            "name": "olga", "role": "operator", "presets": None, "sae": None,
            "running": 4, "waiting": 32, "tokens_per_minute": None,
        },
        {
            "name": "pia", "role": "user", "presets": ["calm", "bold"], "sae": None,
            "running": None, "waiting": None, "tokens_per_minute": 60000,
        },
    ]  # fmt: skip
    for told in (ran.out, listed.out):
        assert not any(secret in told for secret in (*DIGESTS, "the-single-token"))


def test_without_any(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("")
    assert command("token", "list", "--config", str(file)).out == "no tokens: every request is an operator's\n"
    assert json.loads(command("token", "list", "--config", str(file), "--json").out) == []


def test_a_line_that_is_wrong(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[server]\ntokens = ["pia user {DIGESTS[0]} walking=4"]\n')
    ran = command("token", "list", "--config", str(file))
    assert (ran.code, "unknown field" in ran.err) == (78, True)


# — a new one —


def test_a_token_and_its_line(command: Command) -> None:
    made = command("token", "alice", "user", "running=4", "presets=calm,bold")
    assert (made.code, made.err) == (0, "")
    token, line = made.out.splitlines()
    assert len(token) >= 43
    assert line == f"alice user {hashlib.sha256(token.encode()).hexdigest()} running=4 presets=calm,bold"
    assert read_line(line).quota.running == 4
    again = json.loads(command("token", "alice", "viewer", "--json").out)
    assert again["token"] != token
    assert read_line(again["line"]).role == "viewer"


def test_it_goes_into_a_file_and_is_told_once(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    before = os.umask(0)
    try:
        first = command("token", "alice", "operator", "--file", str(file))
    finally:
        os.umask(before)
    assert (first.code, first.err, stat.S_IMODE(file.stat().st_mode)) == (0, "", 0o600)
    file.write_text(file.read_text() + "# and by hand")
    second = command("token", "bob", "user", "--file", str(file), "waiting=3")
    tokens = [made.out.strip() for made in (first, second)]
    text = file.read_text()
    assert not any(token in text for token in tokens)
    assert [line.split()[:2] for line in text.splitlines()] == [["alice", "operator"], ["#", "and"], ["bob", "user"]]
    access = Access(checks.grants(load({"server.tokens_file": str(file)}, environment={})))
    assert [(grant.name, grant.quota.waiting) for token in tokens if (grant := access.of(token.encode()))] == [
        ("alice", None),
        ("bob", 3),
    ]
    config = tmp_path / "config.toml"
    config.write_text(f'[server]\ntokens_file = "{file}"\n')
    assert "bob" in command("token", "list", "--config", str(config)).out


@pytest.mark.parametrize(
    ("holds", "mode", "told"),
    [
        (f"alice viewer {DIGESTS[0]}\n", 0o600, "alice: another token has this name"),
        (f"vera root {DIGESTS[0]}\n", 0o600, "line 1: vera: the role must be one of"),
        ("", 0o644, "accessible to others than its owner"),
        ("#" * (64 * 1024 - 20) + "\n", 0o600, "larger than 65536 bytes"),
    ],
)
def test_a_file_that_could_not_be_used_is_left_as_it_is(
    command: Command, tmp_path: Path, holds: str, mode: int, told: str
) -> None:
    file = tmp_path / "tokens"
    file.write_text(holds)
    file.chmod(mode)
    ran = command("token", "alice", "user", "--file", str(file))
    assert (ran.code, ran.out) == (78, "")
    assert told in ran.err
    assert file.read_text() == holds


def test_a_folder_that_is_not_there(command: Command, tmp_path: Path) -> None:
    ran = command("token", "alice", "user", "--file", str(tmp_path / "none" / "tokens"))
    assert (ran.code, "No such file or directory" in ran.err) == (78, True)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("alice",), "give a name and a role, or `list`"),
        (("alice", "root"), "alice: the role must be one of viewer, user, operator"),
        (("system", "viewer"), "the name system is reserved"),
        (("al ice", "viewer"), "may be empty or hold a space"),
        (("alice", "viewer", "running=4"), "alice: running= is for the role user or operator"),
        (("alice", "user", "running=4", "running=5"), "running= is given twice"),
        (("alice", "user", "walking=4"), "unknown field"),
        (("alice", "user", "--walking"), "unrecognized arguments: --walking"),
        (("alice", "user", "--config", "x"), "--config belongs to `token list`"),
        (("list", "user"), "`token list` takes no role"),
        (("list", "--file", "x"), "`token list` takes no role"),
    ],
)
def test_what_cannot_be_a_line(argv: tuple[str, ...], told: str, command: Command) -> None:
    ran = command("token", *argv)
    assert (ran.code, ran.out) == (64, "")
    assert told in ran.err
