"""The auditor's path: an export, a bare Python without packages, and the README in the export."""

from __future__ import annotations

import json
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.chats import Tokenization
from sae_actor.domain.commands import RequestedIntervention
from sae_actor.domain.messages import RequestedStop
from sae_actor.domain.refs import Edit, Span, When
from sae_actor.generations.records import token_digest
from tests.cli.conftest import Ran, bare_environment, command
from tests.cli.logs import FIRST, SAMPLING, a_life, admitted, ended, write
from tests.domain.dsl import A, Story

__all__ = ["bare_environment", "command"]

Command = Callable[..., Ran]
BOS = Tokenization(prepend_bos=True, chat_template_kwargs={"thinking": False}, left_out=("tools",))
SALT, PROMPT, OUTPUT = "0" * 32, (5, 70000, 3), (9, 1)
EDITS = (
    Edit(feature=5, strength=1e-07, method="set", exclude=("sink", "special"), when=When(feature=2, above=0.5)),
    Edit(feature=6, strength=1e6, method="cap", positions=Span(tokens=(1, 2)), exclude=()),
    Edit(feature=7, strength=0.0, method="project", positions=Span(from_=1), exclude=("special",)),
    Edit(feature=8, strength=-3.25, method="set_projection", positions="response", exclude=()),
)


def story() -> Story:
    """A life with an answer under edits of its own, one cut off, and more tags than ids."""
    told = a_life()
    own = RequestedIntervention(sae_id=A, mode="reconstruct", steering=EDITS)
    told = admitted(
        told, "gen-3", tag='ünusual "tag"', interventions=(own,), tokenization=Tokenization(prepend_bos=True)
    )
    told = ended(told, "gen-3", salt=SALT, prompt_sha256=token_digest(SALT, PROMPT),
                 output_sha256=token_digest(SALT, OUTPUT), text="a\ntext")  # fmt: skip
    told = told.and_then(ev.SteeringChanged(sae_id=A, features=(FIRST,)))
    stop = RequestedStop(feature=3, above=0.5)
    return admitted(told, "gen-4", tag="first", stop_when=stop)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "log", story(), {8: "alice", 11: "bob"})
    return tmp_path / "log"


@pytest.fixture
def bundle(folder: Path, tmp_path: Path, command: Command) -> Path:
    assert command("log", "export", str(tmp_path / "bundle"), "--data-dir", str(folder)).code == 0
    return tmp_path / "bundle"


def bare(folder: Path, line: str) -> tuple[int, str, str]:
    """A line as the README has it, by a Python that finds no package, in an environment with nothing in it."""
    python, script, *argv = shlex.split(line)
    assert python == "python"
    argv = [sys.executable, "-I", "-S", script, *argv]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, env={"PYTHONUTF8": "1"}, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_readme_is_enough(bundle: Path) -> None:
    """Every line that it gives, with an answer from its own list."""
    readme = (bundle / "README.md").read_text("utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", readme, re.DOTALL) for line in block.splitlines()]
    assert [line.split()[1] for line in lines] == ["verify.py", "verify.py", *["explain.py"] * 4]
    head = json.loads((bundle / "log.json").read_bytes())["head"]
    verified = f"ok: 17 events, head 17:{head['hash']}\n"
    assert [bare(bundle, line) for line in lines[:2]] == [(0, verified, "")] * 2
    assert lines[1].endswith(f"--head 17:{head['hash']}")
    code, listed, _ = bare(bundle, lines[2])
    assert code == 0
    assert [row.split()[2] for row in listed.splitlines()[:-1]] == ["gen-1", "gen-2", "gen-3", "gen-4"]
    code, told, _ = bare(bundle, lines[3].replace("GENERATION", "gen-3"))
    assert code == 0
    assert f"log          verified: 17 events, head 17 {head['hash']}\n" in told
    for name, line, ids in (("prompt", lines[4], PROMPT), ("output", lines[5], OUTPUT)):
        given = ",".join(map(str, ids))
        code, told, _ = bare(bundle, re.sub(r"[0-9,]+$", given, line).replace("GENERATION", "gen-3"))
        assert (code, f"  {name:<10} the token ids given are those of this answer\n" in told) == (0, True)
        code, told, _ = bare(bundle, re.sub(r"[0-9,]+$", "1,2", line).replace("GENERATION", "gen-3"))
        assert (code, "NOT those" in told) == (65, True)


@pytest.mark.parametrize("name", ["gen-1", "gen-2", "gen-3", "gen-4", "12", "13", "first", 'ünusual "tag"'])
def test_it_says_what_log_explain_says(name: str, folder: Path, bundle: Path, command: Command) -> None:
    """Line for line; what the fold of the state alone can say is left out there."""
    code, told, error = bare(bundle, shlex.join(["python", "explain.py", name]))
    assert (code, error) == (0, "")
    full = command("log", "explain", name, "--data-dir", str(folder)).out.splitlines()
    lines = told.splitlines()
    assert [line for line in lines if line not in full and not _apart(line)] == []
    unsaid = [line for line in full if line not in lines]
    assert [line for line in unsaid if not _apart(line)] == []
    assert "DIFFERENT" not in told


APART = ("stop: ", "stop", "no end", "matches", "the recorded intervention", "interrupted: ")


def _apart(line: str) -> bool:
    """What the two say in words of their own: why it ended, sampling that is as usual, the fold of the state."""
    return not line or "stop_token_ids" in line or line.strip().startswith(APART)


def test_a_position_counts_before_an_id_and_an_id_before_a_tag(tmp_path: Path, command: Command) -> None:
    told = a_life()
    told = ended(admitted(told, "13", tag="gen-1"), "13")
    told = ended(admitted(told, "gen-5", tag="99"), "gen-5")
    write(tmp_path / "log", told)
    command("log", "export", str(tmp_path / "bundle"), "--data-dir", str(tmp_path / "log"))
    for name, found in (("13", "gen-2"), ("14", "13"), ("gen-1", "gen-1"), ("99", "gen-5")):
        code, out, _ = bare(tmp_path / "bundle", f"python explain.py {name}")
        assert (code, out.split(":")[0]) == (0, found)
        assert command("log", "explain", name, "--data-dir", str(tmp_path / "log")).out.split(":")[0] == found
    for nobody in ("gen-9", "3", "0", "77"):
        assert bare(tmp_path / "bundle", f"python explain.py {nobody}")[0] == 64
        assert command("log", "explain", nobody, "--data-dir", str(tmp_path / "log")).code == 64


def test_nothing_behind_a_damage_is_used(bundle: Path) -> None:
    events = bundle / "events.ndjson"
    lines = events.read_bytes().splitlines(keepends=True)
    assert lines[10].count(b'"strength":7.5') == 1
    lines[10] = lines[10].replace(b'"strength":7.5', b'"strength":9.5')
    events.write_bytes(b"".join(lines))
    code, told, _ = bare(bundle, "python explain.py gen-1")
    assert (code, "log          damaged: event 11: " in told, "adds 7.5 times" in told) == (65, True, True)
    assert bare(bundle, "python explain.py gen-2")[0] == 65
    assert "gen-2" not in bare(bundle, "python explain.py --list")[1]
    events.write_bytes(b"".join(lines[:9]))
    code, told, _ = bare(bundle, "python explain.py gen-1")
    assert (code, "damaged: it ends at 9, not at its head 17" in told) == (65, True)


def test_an_erased_beginning(folder: Path, tmp_path: Path, command: Command) -> None:
    assert command("log", "redact", "9", "--why", "asked for", "--data-dir", str(folder)).code == 0
    command("log", "export", str(tmp_path / "erased"), "--data-dir", str(folder))
    for name in ("gen-1", "9", "10"):
        code, told, _ = bare(tmp_path / "erased", f"python explain.py {name}")
        assert code == 0
        assert told.splitlines()[0] == "gen-1: requested by me"
        assert "the payload of that event was erased" in told
        assert command("log", "explain", name, "--data-dir", str(folder)).out.startswith("gen-1: requested by me\n")


def test_as_json(bundle: Path) -> None:
    code, told, error = bare(bundle, "python explain.py gen-3 --json")
    assert (code, error.startswith("log          verified: 17 events")) == (0, True)
    began, finished = map(json.loads, told.splitlines())
    assert (began["type"], finished["type"]) == ("GenerationStarted", "GenerationFinished")
    assert began["data"]["intervention"][0]["steering"][0]["strength"] == 1e-07
    assert SAMPLING.seed == began["data"]["sampling"]["seed"]
    for wrong in ("python explain.py", "python explain.py gen-1 --list"):
        assert bare(bundle, wrong)[0] == 2


def test_token_ids_are_four_bytes_each() -> None:
    assert struct.pack("<3I", *PROMPT) == b"".join(each.to_bytes(4, "little") for each in PROMPT)
