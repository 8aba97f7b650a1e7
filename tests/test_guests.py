"""What guests find in dotfiles and dotfolders: it parses, and names only files, commands and versions that exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # has no types
from packaging.requirements import Requirement
from packaging.version import Version

import sae_actor
import sae_actor.api.app
from sae_actor.api.operations import OPERATIONS
from sae_actor.cli.arguments import parse
from sae_actor.config import ConfigurationError, Settings, check_exposure, data_folder, load, strangers
from sae_actor.service.service import STOP_SECONDS
from tests.environments import LOCK, ROOT, TORCH, pinned, requirements

README = (ROOT / "README.md").read_text("utf-8")
RUN = (ROOT / ".ci" / "run").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

FOLDERS = (".github", ".docker", ".devcontainer", ".systemd")
FILES = sorted(
    [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    + [ROOT / name for name in (".pre-commit-config.yaml", ".editorconfig", ".ci/install", ".ci/run")]
)
TEXTS = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in FILES}
WORKFLOW, DOCKERFILE, COMPOSE, CONTRIBUTING = (
    TEXTS[name]
    for name in (".github/workflows/checks.yaml", ".docker/Dockerfile", ".docker/compose.yaml",
                 ".github/CONTRIBUTING.md")
)  # fmt: skip
DEVCONTAINER = json.loads(TEXTS[".devcontainer/devcontainer.json"])
JOBS: dict[str, Any] = yaml.safe_load(WORKFLOW)["jobs"]

_OURS = r"sae_actor|tests|\.ci|\.github|\.docker|\.devcontainer|\.pre-commit-config\.yaml|\.editorconfig"
_PATH = re.compile(rf"(?<![\w/.-])(?:(?:{_OURS})(?:/[\w.-]+)*|pyproject\.toml|README\.md|config\.toml)(?![\w*-])")
_LINE = re.compile(r"^(?:\d+\. |- |\| )", re.MULTILINE)


def paths(text: str) -> set[str]:
    """Paths of the repository that a text names."""
    return {found.rstrip(".") for found in _PATH.findall(text)}


def test_what_is_yaml_or_json_parses() -> None:
    assert len([name for name in TEXTS if name.endswith(".yaml") and yaml.safe_load(TEXTS[name])]) == 3
    assert DEVCONTAINER["name"] == PROJECT["project"]["name"]
    assert set(JOBS) == {"lint-and-types", "tests", "environments"}


@pytest.mark.parametrize("name", TEXTS)
def test_paths_and_modules_exist(name: str) -> None:
    # `python -m tests.x` is a module; `sae_actor.__version__` an attribute, `.venv` made by a command.
    named = {each for each in paths(TEXTS[name]) if not re.match(r"(sae_actor|tests)\.", each)}
    missing = sorted(each for each in named if not (ROOT / each).exists())
    assert missing == []
    modules = set(re.findall(r"python3? -m ([\w.]+)", TEXTS[name]))
    known = {"venv", "pip", *pinned()}
    assert [each for each in modules if each not in known and importlib.util.find_spec(each) is None] == []


def test_paths_are_found_in_texts() -> None:
    """The test above looks at what it should."""
    text = "`sae_actor/sae`, tests/x/test_y.py. See .ci/lock.txt, /opt/sae-actor, `README.md` and .venv/bin/sae-actor"
    assert paths(text) == {"sae_actor/sae", "tests/x/test_y.py", ".ci/lock.txt", "README.md"}
    assert len(paths(CONTRIBUTING)) > 60


@pytest.mark.parametrize("name", TEXTS)
def test_no_host_and_no_path_of_a_machine(name: str) -> None:
    addresses = re.findall(r"https?://[^\s'\"/]+", TEXTS[name])
    assert set(addresses) <= {"http://127.0.0.1:8000"}
    assert not re.search(r"\b[\w-]+\.(io|org|com|net|dev)\b", TEXTS[name])
    assert not re.search(r"(?<![\w.])/(home|root|work|mnt|Users|tmp|opt/(?!sae-actor\b))", TEXTS[name])


def test_names_in_contributing_are_in_the_files_next_to_them() -> None:
    looked_at = 0
    for part in _LINE.split(CONTRIBUTING.partition("## How to add a command")[2]):
        names = set(re.findall(r"`(_?[A-Z]\w+)`", part)) - {"README"}
        if not names:
            continue
        found = [ROOT / path for path in paths(part)]
        files = [file for path in found for file in ([path] if path.is_file() else path.rglob("*.py"))]
        source = "\n".join(file.read_text("utf-8") for file in files if file.suffix == ".py")
        assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", source)] == [], part
        looked_at += len(names)
    assert looked_at > 10


def test_tests_of_contributing_are_commands() -> None:
    markers = {each.partition(":")[0] for each in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    assert set(re.findall(r"`-m (\w+)`", CONTRIBUTING)) <= markers
    shown = set(re.findall(r"-m tests\.environments (\w+)", CONTRIBUTING))
    assert shown <= {"oldest", "locked", "newest", "lock", "quantized", "parquet", "clients"}
    for line in re.findall(r"^\.venv/bin/sae-actor (.*?) *(?:#.*)?$", CONTRIBUTING, re.MULTILINE):
        parse(shlex.split(line))


def test_the_readme_points_to_contributing() -> None:
    assert README.count("`.github/CONTRIBUTING.md`") == 1


def test_the_changelog_begins_with_what_is_not_released() -> None:
    headings = re.findall(r"^## (.*)$", TEXTS[".github/CHANGELOG.md"], re.MULTILINE)
    assert headings[0] == "Unreleased"
    kinds = set(re.findall(r"^### (.*)$", TEXTS[".github/CHANGELOG.md"], re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_editor_s_exceptions_are_files() -> None:
    (globs,) = re.findall(r"^\[\{(tests/.*)\}\]$", TEXTS[".editorconfig"], re.MULTILINE)
    assert all(list(ROOT.glob(each)) for each in globs.split(","))


# — what is run —


def block() -> str:
    (found,) = re.findall(r"^```bash tests\n(.*?)\n```$", README, re.DOTALL | re.MULTILINE)
    return str(found)


def steps(job: str) -> list[str]:
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def test_the_readme_s_test_command_is_read_alike_everywhere() -> None:
    (reading,) = re.findall(r"^tests=.*$", RUN, re.MULTILINE)
    assert reading in TEXTS[".ci/install"].splitlines()
    assert steps("tests")[-1].startswith(f"{reading}\n")
    done = subprocess.run(["bash", "-c", f'{reading}; printf "%s" "$tests"'], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.decode() == block()


def test_install_is_that_command_up_to_its_tests(tmp_path: Path) -> None:
    assert block().count(" && .venv/bin/python -m pytest") == 1
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "install", tmp_path / ".ci" / "install")
    (tmp_path / "README.md").write_text("```bash tests\ntouch made && .venv/bin/python -m pytest -n 2\n```\n")
    subprocess.run([tmp_path / ".ci" / "install"], check=True, timeout=20)
    assert (tmp_path / "made").exists()
    (tmp_path / "README.md").write_text("nothing\n")
    assert subprocess.run([tmp_path / ".ci" / "install"], check=False, stderr=subprocess.DEVNULL).returncode == 1


def test_lint_and_types_are_those_of_ci() -> None:
    checks = re.findall(r"^\.venv/bin/python -m (?:ruff|mypy).*$", RUN, re.MULTILINE)
    assert steps("lint-and-types") == [".ci/install", *checks]
    assert len(checks) == 3


def test_the_three_environments_are_run() -> None:
    rows = JOBS["environments"]["strategy"]["matrix"]["include"]
    assert {row["environment"] for row in rows} == {"oldest", "locked", "newest"}
    allowed = Requirement(f"python{PROJECT['project']['requires-python']}").specifier
    assert all(allowed.contains(row["python"]) for row in rows)
    assert steps("environments")[-1] == "python -m tests.environments ${{ matrix.environment }}"
    (needed,) = re.findall(r"pip install '(.*)'", WORKFLOW)
    assert Requirement(needed) in list(requirements())


def test_debian_s_packages_are_those_of_ci() -> None:
    (programs,) = re.findall(r"^for program in (.*); do$", RUN, re.MULTILINE)
    (smaller,) = re.findall(r"#nginx/([\w-]+)", RUN)
    packages = programs.replace("nginx", smaller)
    for line in (steps("tests")[0], steps("environments")[0], DEVCONTAINER["onCreateCommand"]):
        assert line.endswith(f" --no-install-recommends {packages}")
    assert DEVCONTAINER["postCreateCommand"] == ".ci/install"


def test_hooks_are_the_environment_s_own() -> None:
    (repository,) = yaml.safe_load(TEXTS[".pre-commit-config.yaml"])["repos"]
    assert repository["repo"] == "local"
    entries = [hook["entry"].split() for hook in repository["hooks"]]
    assert [each[:3] for each in entries] == [[".venv/bin/python", "-m", name] for name in ("ruff", "ruff", "mypy")]
    assert {"ruff", "mypy"} <= set(pinned())


# — the container —


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of that name, lines joined, comments out."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [" ".join(line.split()[1:]) for line in text.splitlines() if line.startswith(f"{name} ")]


def container() -> dict[str, str]:
    """The environment of the service in the container."""
    return dict(each.split("=", 1) for each in shlex.split(instructions("ENV")[-1]))


def test_the_container_installs_as_the_readme_s_first_command() -> None:
    (command,) = re.findall(r"^```bash\n(python3 -m venv .*) && \.venv/bin/sae-actor demo\n```$", README, re.MULTILINE)
    installs = re.findall(r"pip install ([^&;]+?)(?= &&|;|$)", command)
    assert installs == re.findall(
        r"pip install ([^&;]+?)(?= &&|;|$)", "\n".join(instructions("RUN")).replace("\n", ";")
    )
    assert installs[0] == f"torch=={TORCH}"
    (torch,) = [each for each in requirements() if each.name == "torch"]
    low, high = re.findall(r"torch ([\d.]+) to ([\d.]+)", DOCKERFILE)[0]
    assert torch.specifier.contains(low)
    assert torch.specifier.contains(f"{high}.0")
    assert instructions("FROM") == ["${BASE} AS build", "${BASE}"]


def test_the_container_is_given_all_that_it_is_built_from() -> None:
    kept = [line[1:] for line in TEXTS[".docker/Dockerfile.dockerignore"].splitlines() if line.startswith("!")]
    copied = [name for line in instructions("COPY") if not line.startswith("--from") for name in line.split()[:-1]]
    assert sorted(copied) == sorted(kept)
    assert str(LOCK.relative_to(ROOT)) in kept
    assert PROJECT["project"]["readme"] in kept


def test_the_container_needs_a_token_and_no_root() -> None:
    environment = container()
    assert strangers(environment) == []
    settings = load(environment=environment)
    assert settings.server.host == "0.0.0.0"
    with pytest.raises(ConfigurationError) as refused:
        check_exposure(settings)
    assert refused.value.exit_code == 78
    check_exposure(load(environment={**environment, "SAE_ACTOR_SERVER_TOKEN": "a-token-for-this-test-alone"}))
    assert instructions("USER")[-1].isdecimal()
    assert int(instructions("USER")[-1]) > 0


def test_the_container_keeps_its_data_in_the_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    assert instructions("VOLUME") == ["/data"]
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, container()[name])
        assert Path(container()[name]).is_relative_to("/data")
    assert data_folder(Settings()) == Path("/data/sae-actor")


def test_the_container_s_command_and_health() -> None:
    command = [*json.loads(instructions("ENTRYPOINT")[0]), *json.loads(instructions("CMD")[0])]
    assert command[0] in PROJECT["project"]["scripts"]
    parse(command[1:])
    port = Settings().server.port
    assert instructions("EXPOSE") == [str(port)]
    (path,) = re.findall(rf"http://127\.0\.0\.1:{port}(/\w+)", instructions("HEALTHCHECK")[0])
    assert [each.open for each in OPERATIONS if each.path == path] == [True]


def test_compose_builds_that_container() -> None:
    service = yaml.safe_load(COMPOSE)["services"]["sae-actor"]
    here = ROOT / ".docker"
    assert (here / service["build"]["context"]).resolve() == ROOT
    assert ROOT / service["build"]["dockerfile"] == here / "Dockerfile"
    arguments = {each.partition("=")[0] for each in instructions("ARG")}
    assert set(service["build"]["args"]) == arguments
    assert strangers(service["environment"]) == []
    load(environment=dict.fromkeys(service["environment"], ""))
    assert service["environment"]["SAE_ACTOR_SERVER_TOKEN"].startswith("${SAE_ACTOR_SERVER_TOKEN:?")
    assert service["ports"] == [f"127.0.0.1:{Settings().server.port}:{Settings().server.port}"]
    assert service["volumes"] == ["data:/data"]


# — one version, and what is measured —


def test_the_version_stands_in_one_place() -> None:
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "sae_actor.__version__"}
    assert str(Version(sae_actor.__version__)) == sae_actor.__version__
    source = (ROOT / "sae_actor" / "__init__.py").read_text("utf-8")
    assert re.findall(r'^__version__ = "(.*)"$', source, re.MULTILINE) == [sae_actor.__version__]


def test_coverage_measures_children(tmp_path: Path) -> None:
    """What a child of a measured process runs of the package is counted with the rest."""
    pytest.importorskip("coverage")
    script = tmp_path / "parent.py"
    script.write_text("import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'sae_actor', '--version'])\n")
    configured = [f"--rcfile={ROOT / 'pyproject.toml'}", f"--data-file={tmp_path / 'data'}"]
    for name, *more in (["run", str(script)], ["combine"], ["json", "-o", str(tmp_path / "counts.json")]):
        command = [sys.executable, "-m", "coverage", name, *configured, *more]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=60, stdout=subprocess.DEVNULL)
    counts = json.loads((tmp_path / "counts.json").read_text())["files"]
    (arguments,) = [each for name, each in counts.items() if name.endswith("sae_actor/cli/arguments.py")]
    assert arguments["summary"]["covered_lines"] > 50


def test_whoever_stops_the_service_waits_longer_than_it_drains() -> None:
    grace = yaml.safe_load(COMPOSE)["services"]["sae-actor"]["stop_grace_period"]
    unit = TEXTS[".systemd/sae-actor.service"]
    timeout = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert timeout is not None
    drain = Settings().server.drain_seconds
    assert min(int(grace.removesuffix("s")), int(timeout[1])) > drain + STOP_SECONDS


def test_the_unit_starts_a_command_that_there_is() -> None:
    unit = TEXTS[".systemd/sae-actor.service"]
    assert re.search(r"^Type=notify$", unit, re.MULTILINE)
    start = re.search(r"^ExecStart=/opt/sae-actor/bin/sae-actor (.+)$", unit, re.MULTILINE)
    assert start is not None
    assert parse(shlex.split(start[1])).config == Path("/etc/sae-actor/config.toml")
