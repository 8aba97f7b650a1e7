"""`token list`: who may do what, without a token or a digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

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
