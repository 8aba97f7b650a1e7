"""What the command line says of itself: usage, help, exit codes, and what it does not load or print."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sae_actor.cli import exit_codes
from sae_actor.cli.render import answers
from sae_actor.client import StreamEvent
from tests.cli.test_commands import Command


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("nonsense",),
        ("attach",),
        ("attach", "x", "--layer", "two"),
        ("attach", "x", "--mode", "other"),
        ("steer", "x"),
        ("steer", "x", "1=1", "--clear"),
        ("steer", "x", "1"),
        ("steer", "x", "one=1"),
        ("steer", "x", "-1=1"),
        ("steer", "x", "1="),
        ("steer", "x", "1=nan"),
        ("steer", "x", "1=inf"),
        ("steer", "x", "\u0661=1"),
        ("generate", "x", "--temperature", "hot"),
        ("generate", "x", "--system", "y"),
        ("events", "--after", "-1"),
        ("events", "--after", "1.0"),
        ("status", "--ur", "http://127.0.0.1:1"),
        ("serve", "--port", "http"),
        ("serve", "--url", "http://127.0.0.1"),
        ("demo", "--model", "x"),
        ("log",),
        ("log", "nonsense"),
        ("log", "state", "--at", "-1"),
        ("log", "explain", "--data-dir", "x"),
        ("log", "reproduce"),
        ("log", "reproduce", "--all", "gen-1"),
    ],
)
def test_wrong_usage(argv: tuple[str, ...], command: Command) -> None:
    ran = command(*argv)
    assert ran.code == 64
    assert ran.out == ""
    assert ran.err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("steer", "x"), "no edit given; give FEATURE=STRENGTH"),
        (("steer", "x", "--clear", "5=1"), "--clear cannot be combined with FEATURE=STRENGTH"),
        (("steer", "x", "--unit", "raw", "5"), "'5' is not FEATURE=STRENGTH"),
        (("steer", "x", "1=1", "--nonsense"), "unrecognized arguments: --nonsense"),
        (("steer", "x", "-1=5"), "steer: '-1=5': '-1' is not a feature; features are numbered 0, 1, 2, …"),
        (("steer", "x", "2=1", "-0=5"), "'-0' is not a feature"),
        (("steer", "x", "--", "-1=5"), "'-1' is not a feature"),
        (("steer", "x", "-.5=5", "--method", "set"), "'-.5' is not a feature"),
        (("steer", "x", "1.5=3"), "'1.5' is not a feature"),
        (("steer", "x", "584="), "'584=' has no strength after '='"),
        (("steer", "x", "584=--5"), "'584=--5': the strength '--5' is not a number"),
        (("steer", "x", "-1=5", "--nonsense"), "unrecognized arguments: -1=5 --nonsense"),
        (("attach", "x", "--layer", "-1"), "argument --layer: '-1' is not a layer; layers are numbered from 0"),
    ],
)
def test_wrong_usage_is_told_in_words(argv: tuple[str, ...], told: str, command: Command) -> None:
    ran = command(*argv)
    assert ran.code == 64
    assert told in ran.err


COMMANDS = "demo serve status catalog download list attach detach delete steer preset generate events token log"


@pytest.mark.parametrize("name", COMMANDS.split())
def test_help_of_every_command(name: str, command: Command) -> None:
    ran = command(name, "--help")
    assert ran.code == 0
    assert f"sae-actor {name}" in ran.out
    assert name in command("--help").out


def test_every_exit_code_is_told(command: Command) -> None:
    codes = {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}
    assert codes == exit_codes.MEANINGS.keys()
    told = " ".join(command("--help").out.split())
    assert all(f"{code} {what}" in told for code, what in exit_codes.MEANINGS.items())


@pytest.mark.parametrize("argv", [["--help"], ["demo", "--help"], ["status", "--url", "http://127.0.0.1:9"]])
def test_no_torch_on_the_client_side(argv: list[str]) -> None:
    told = (
        "import sys\nfrom sae_actor.cli import main\n"
        f"try: main({argv!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'litestar', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", told], check=True, capture_output=True)


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    assert answers.plain("a\x1b[31mb\x9b\n\tc\x00") == "a\ufffd[31mb\ufffd\n\tc\ufffd"
    row = {"path": "x\x1b]0;", "format": "f", "file_size_bytes": 5_300_000}
    assert "\x1b" not in answers.catalog([row])
    assert "5.3 MB" in answers.catalog([row])
    assert "\x1b" not in answers.passing(StreamEvent(None, "download_progress", {"path": "\x1b"}))


def test_edits_are_shown_with_what_is_unusual() -> None:
    edit = {"feature": 3, "strength": 0.0, "method": "scale", "positions": {"from": 2}, "exclude": ["sink"]}
    assert answers.edit(edit) == '3=0 (method scale, positions {"from": 2}, exclude sink)'
