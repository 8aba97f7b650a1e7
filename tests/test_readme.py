"""The README against the code: its commands parse, its paths exist, its tables are the code's, its session is run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, get_args

import pytest

import sae_actor.api.app  # noqa: F401 - fills the table of routes
from sae_actor.api.operations import OPERATIONS
from sae_actor.api.requests import MAX_PROMPTS
from sae_actor.api.text.fields import CHAT, COMPLETION, MESSAGE
from sae_actor.api.text.messages import ChatMessage
from sae_actor.api.text.published import Neutral
from sae_actor.api.text.requests import ChatBody, CompletionBody
from sae_actor.cli.arguments import parse
from sae_actor.cli.exit_codes import MEANINGS
from sae_actor.cli.render.progress import STAGES
from sae_actor.config import Settings
from sae_actor.demo import FEATURE, STRENGTH, curl_lines
from sae_actor.demo.model import NAME
from sae_actor.domain.refs import Exclusion, Method, NamedPositions, Unit
from sae_actor.errors import BadRequestError
from sae_actor.formats import FORMATS
from sae_actor.formats.readers import sae_lens
from sae_actor.models.families import FAMILIES, TEXT_PART
from sae_actor.reproducing import TOLERANCES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
URL = "http://127.0.0.1:8000"
GENERATION = re.compile(r"gen-[0-9a-f-]{36}")
SAE = re.compile(r"smollm2-135m-layer15-[0-9a-f]{8}")


class Step(NamedTuple):
    """A command of a session and what it prints."""

    command: str
    output: str


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def table(title: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    rows = [line.strip("|").split("|") for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def names(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def steps() -> list[Step]:
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append(Step(command, output))
    return found


def commands() -> list[str]:
    """Every line that a shell would be given."""
    shell = [line for kind in ("bash", "bash tests") for block in blocks(kind) for line in block.splitlines()]
    return [*shell, *(step.command for step in steps())]


# — what the tables and lists say —


def test_the_table_of_formats_is_the_code_s() -> None:
    shown = [(names(row[0])[0], tuple(names(row[1])), tuple(row[2].split(", "))) for row in table("SAE formats")]
    assert shown == [(each.name, each.files, each.architectures) for each in FORMATS]
    text = section("SAE formats")
    assert names(text.split("Refused by name")[1].split(".")[0]) == list(sae_lens._REFUSED)
    assert names(text.split("Model types:")[1].split(". ")[0]) == list(FAMILIES)
    assert names(text.split("Of multimodal models")[1].split("the text part")[0]) == list(TEXT_PART)


def test_the_table_of_methods_is_the_code_s() -> None:
    assert [names(row[0])[0] for row in table("Steering")] == list(get_args(Method))
    positions = names(section("Steering").split("`positions`:")[1].split(".\n")[0])
    assert positions[: len(get_args(NamedPositions))] == list(get_args(NamedPositions))


def test_the_limits_are_the_code_s() -> None:
    limits = section("Limits")
    refused = names(limits.split("Refused on `/v1`")[1].split("\n* ")[0])
    chat = ChatBody(messages=[ChatMessage("user", "hello")])
    expected = {*CompletionBody(prompt="hello").refused(), *chat.refused()}
    assert set(refused) - {"/v1", "echo", "continue_final_message"} == expected
    lacking = names(limits.split("What else OpenAI or vLLM publish")[1].split("\n* ")[0])
    assert all(isinstance({**CHAT.fields, **COMPLETION.fields}[name], Neutral) for name in lacking)
    exclusions = section("Steering").split("* `exclude`:")[1].split("\n* ")[0]
    assert all(f"`{each}`" in exclusions for each in get_args(Exclusion))
    units = section("Steering").split("* `unit`")[1].split("\n* ")[0]
    assert all(f"`{each}`" in units for each in get_args(Unit))
    missing = names(limits.partition("Not there yet:")[2].split("\n\n")[0])
    assert not {each for each in missing if each.startswith("/")} & {each.path for each in OPERATIONS}
    assert "(32)" in limits
    assert Settings().engine.max_running == 32
    assert Settings().gpu.max_attachments == 1


def test_what_is_refused_of_prompts_is_the_code_s() -> None:
    limits = section("Limits")
    assert f"more than {MAX_PROMPTS} prompts" in limits
    assert "roles `tool` and `function`" in limits
    for wrong in ("tool", "function"):
        with pytest.raises(BadRequestError):
            MESSAGE.settle({"role": wrong, "content": "a"})


def test_the_near_ties_are_the_code_s() -> None:
    said = " ".join(section("What was active for this answer?").split()).replace(" logits in", " in")
    assert all(f"{most:g} in {name}" in said for name, most in TOLERANCES.items())


def test_what_is_said_of_the_demo() -> None:
    assert "(93 MB" in STAGES["download"]
    assert "(93 MB" in section("Start")
    assert f"feature {FEATURE}" in section("A first session")
    assert f'"strength": {STRENGTH}' in section("A first session")
    found = SAE.search(section("A first session"))
    assert found is not None
    assert curl_lines(URL, found[0]) == [step.command for step in steps()[:3]]


# — what the commands are —


def test_every_command_line_parses() -> None:
    lines = [line for line in commands() if line.startswith("sae-actor")]
    assert len(lines) > 15
    for line in lines:
        parse(shlex.split(line, comments=True)[1:])


def test_every_path_exists() -> None:
    paths = {path for line in commands() for path in re.findall(rf"{URL}(/[^ ?']*)", line)}
    known = {re.sub(r"{\w+}", "ID", each.path) for each in OPERATIONS}
    assert {re.sub(r"\$[A-Z]+|(?<=/)\d+$", "ID", SAE.sub("ID", path)) for path in paths} <= known
    mentioned = {each.partition(" ")[2] for each in names(README) if each.startswith(("GET /", "POST /"))}
    assert mentioned <= {each.path for each in OPERATIONS}


def test_the_benchmarks_are_there() -> None:
    modules = {name for line in commands() for name in re.findall(r"-m (tests\.bench\.\w+)", line)}
    files = {f"tests.bench.{path.stem}" for path in (ROOT / "tests" / "bench").glob("bench_*.py")}
    assert modules == files


def test_one_test_command_with_torch_named() -> None:
    (tests,) = blocks("bash tests")
    assert "-m pytest" in tests
    pinned = {pin for line in commands() for pin in re.findall(r"torch==[\d.]+", line)}
    assert len(pinned) == 1


def test_the_python_example_runs() -> None:
    (example,) = blocks("python")
    subprocess.run([sys.executable, "-c", example], cwd=ROOT, check=True, timeout=100)


# — the session —


class Machine:
    """A home folder, the demo in it, and a shell beside it."""

    def __init__(self, home: Path, model: Path) -> None:
        binaries = home / "bin"
        binaries.mkdir()
        command = binaries / "sae-actor"
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m sae_actor "$@"\n')
        command.chmod(0o755)
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("SAE_ACTOR_", "XDG_"))}
        self.environment = {
            **mine,
            "HOME": str(home),
            "PATH": f"{binaries}:{mine['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "SAE_ACTOR_DEMO_MODEL_DIR": str(model.parent),
            "SAE_ACTOR_SERVER_PORT": "0",
        }
        self.home = home
        self.url = self.sae_id = self.generation = ""
        self.lines: list[str] = []
        self.demo: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when the demo has printed its three lines."""
        log = self.home / "demo.log"
        with log.open("w") as out:
            self.demo = subprocess.Popen(
                ["sae-actor", "demo"], stdout=out, stderr=out, env=self.environment, cwd=self.home, text=True
            )
        deadline = time.monotonic() + 60
        while len(self.lines) < 3 or "Ctrl-C" not in log.read_text():
            assert self.demo.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
            self.lines = [line for line in log.read_text().splitlines() if line.startswith("curl")]
        self.url = re.findall(r"on (http://\S+)", log.read_text())[0]
        self.sae_id = SAE.findall(log.read_text())[0]
        self.environment["SAE_ACTOR_URL"] = self.url

    def run(self, command: str) -> str:
        """What the shell prints, as the README has it: its address, its id of the SAE."""
        assert self.demo is not None
        if command == "sae-actor demo":
            self.start()
            return ""
        if assigned := re.fullmatch(r"(\w+)=(\S+)", command):
            self.environment[assigned[1]] = self.generation if assigned[2].startswith("gen-") else self.sae_id
            return ""
        here = SAE.sub(self.sae_id, command.replace(URL, self.url)).replace("curl -sN", "curl -sN --max-time 1")
        done = subprocess.run(
            ["sh", "-c", here],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.home,
            timeout=60,
            check=False,
        )
        assert done.returncode == (28 if "--max-time" in here else 0), done.stderr
        self.generation = next(iter(GENERATION.findall(done.stdout)[-1:]), self.generation)
        if command.startswith("kill"):
            expected = {"kill -9": -signal.SIGKILL, "kill -INT": 0}[command.partition(" $")[0]]
            assert self.demo.wait(20) == expected
        return done.stdout

    def end(self) -> None:
        if self.demo is not None and self.demo.poll() is None:
            self.demo.kill()
            self.demo.wait(10)


@pytest.fixture
def machine(tmp_path: Path, real_model: Path) -> Iterator[Machine]:
    assert real_model.name == NAME
    made = Machine(tmp_path, real_model)
    with running(made):
        yield made


@contextmanager
def running(machine: Machine) -> Iterator[None]:
    try:
        machine.start()
        yield
    finally:
        machine.end()


VARYING = (
    (SAE, "SAE"),
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "UUID"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "DIGEST"),
    (re.compile(r"^id: [0-9a-f]{8}\."), "id: LOG."),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
)
"""What differs between two machines, or two runs."""


def same(text: str) -> str:
    for pattern, word in VARYING:
        text = "\n".join(pattern.sub(word, line) for line in text.split("\n"))
    return text.strip()


def as_shown(shown: str) -> re.Pattern[str]:
    """The README's output as a pattern: `…` stands for what was left out, alone on a line for lines."""
    lines = [
        r"(?:.*\n)*?.*" if line == "…" else ".*".join(map(re.escape, line.split("…")))
        for line in same(shown).split("\n")
    ]
    return re.compile("\n".join(lines))


@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("curl") is None, reason="the session needs curl")
def test_the_session(machine: Machine) -> None:
    assert machine.lines == curl_lines(machine.url, machine.sae_id)
    for command, output in steps():
        printed = machine.run(command)
        assert as_shown(output).fullmatch(same(printed)), f"$ {command}\n{printed}\nnot as shown:\n{output}"


@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("curl") is None, reason="the recipes need curl")
def test_the_recipes_of_runs(machine: Machine) -> None:
    (machine.home / "mine.txt").write_text("I read a good book.\nThe weather is cold, and nobody goes out.\n", "utf-8")
    recipes, *_ = re.findall(r"^```bash\n(.*?)^```$", section("Runs"), re.DOTALL | re.MULTILINE)
    losses, *fires = machine.run(recipes).splitlines()
    clean, with_sae, l0 = map(float, losses.split())
    assert 1 < clean < with_sae < 8
    assert 10 < l0 < 80
    assert fires[0].split(maxsplit=2)[0] == "0"
    assert " book" in fires[0]


def test_every_exit_code_is_named() -> None:
    assert all(re.search(rf"\b{code} ", section("Command line")) for code in MEANINGS)
