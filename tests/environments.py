"""The environments that the ranges of pyproject.toml promise, each made anew in a temporary folder.

    python -m tests.environments oldest|locked|newest|quantized|parquet [--all] [--torch VERSION]
    python -m tests.environments lock
    python -m tests.environments clients [NAME …] [--url URL]

`oldest` has every lower bound, `locked` what `.ci/lock.txt` pins, `newest` the newest that the ranges let in. In each
the tests of the seams are run, with `--all` the whole suite; the exit code is pytest's. torch stays at the version of
the README's commands unless `--torch` names one: older ones come for CUDA alone, some gigabytes. `quantized` and
`parquet` are `locked` with the extra of that name, and run the tests of quantised models and of Parquet.

`lock` writes `.ci/lock.txt`: every package of the README's two commands but torch and the project, with hashes, for
CPython 3.11 to 3.13 on Linux, from wheels alone.

`clients` makes an environment for each client of others that `tests.clients.listed` names, runs its script against the
demo (a new one, or a service at URL) and prints a table; the exit code counts failures.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / ".ci" / "lock.txt"
TORCH = "2.13.0"
SEAMS = [f"tests/{room}" for room in ("engine", "formats", "hub", "eventlog", "api", "cli")]
OF_EXTRAS = {
    "quantized": ["tests/engine/model/test_quantised.py", "tests/reproducing/test_quantised.py"],
    "parquet": ["tests/api/runs/test_parquet.py"],
}
"""Extras that the lock lacks → their tests."""
RESOLVER = "uv>=0.9"
"""Finds the versions of the lock, for all Pythons at once; nothing is installed with it."""
OF_TORCH = ("torch", "triton", "nvidia-", "cuda-")
"""Beginnings of names that come with torch, whichever build of it a machine has."""
EVERYWHERE = (
    " and implementation_name == 'cpython' and sys_platform == 'linux'",
    " and python_full_version < '3.14'",
    " ; python_full_version < '3.14'",
)
"""What pyproject.toml says of the lock, and so is left out where it alone stands after a package."""
HEAD = """\
# Made by `python -m tests.environments lock`: what the README's commands install besides torch and the project.
# CPython 3.11 to 3.13 on Linux. Installed with --no-deps --require-hashes.
"""


# — what pyproject.toml says —


def requirements() -> Iterator[Requirement]:
    """What the project and its tests need directly; extras of its own are followed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    left = [*project["dependencies"], *extras["test"]]
    while left:
        each = Requirement(left.pop(0))
        if each.name == project["name"]:
            left.extend(line for extra in sorted(each.extras) for line in extras[extra])
        else:
            yield each


def lower_bounds() -> dict[str, Version]:
    """Name → the oldest version that may be installed, where a range has one."""
    return {
        canonicalize_name(each.name): Version(bound.version)
        for each in requirements()
        for bound in each.specifier
        if bound.operator == ">="
    }


def pinned() -> dict[str, set[Version]]:
    """Name → versions of the lock: one, or one for each range of Pythons."""
    found: dict[str, set[Version]] = {}
    for name, version in re.findall(r"^([a-z0-9][a-z0-9.-]*)==([^\s;\\]+)", LOCK.read_text("utf-8"), re.MULTILINE):
        found.setdefault(name, set()).add(Version(version))
    return found


def is_locked() -> bool:
    """Whether torch, and each package of the lock that is installed here, has the version of the README's commands."""
    installed: dict[str, Version] = {
        canonicalize_name(each.name): Version(each.version) for each in metadata.distributions() if each.name
    }
    wanted = {**pinned(), "torch": {Version(TORCH)}}
    return all(name not in installed or Version(installed[name].public) in found for name, found in wanted.items())


# — the lock —


def lock() -> None:
    with tempfile.TemporaryDirectory() as folder:
        python = _made(Path(folder) / "venv")
        _run([python, "-m", "pip", "install", "--quiet", RESOLVER])
        build, out = (Path(folder) / name for name in ("build.in", "lock.txt"))
        backend = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
        build.write_text("\n".join(backend))
        _run(
            [python, "-m", "uv", "pip", "compile", "pyproject.toml", str(build), "--extra", "test", "--universal",
             "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header", "--only-binary", ":all:",
             "--output-file", str(out), "--quiet"]
        )  # fmt: skip
        found = out.read_text("utf-8")
    for words in EVERYWHERE:
        found = found.replace(f"{words} \\", " \\")
    blocks = re.split(r"^(?=\S)", found, flags=re.MULTILINE)
    LOCK.write_text(HEAD + "".join(block for block in blocks if not block.startswith(OF_TORCH)), "utf-8")
    print(f"{LOCK.relative_to(ROOT)}: {len(pinned())} packages")


# — environments —


def made(name: str, folder: Path, torch: str) -> str:
    """Make an environment; its Python."""
    python = _made(folder / "venv")
    pip = [python, "-m", "pip", "install", "--quiet"]
    bounds = {**lower_bounds(), "torch": Version(torch)} if name == "oldest" else {"torch": Version(torch)}
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{each}=={version}\n" for each, version in bounds.items()))
    _run([*pip, f"torch=={torch}"])
    if name in ("locked", *OF_EXTRAS):
        _run([*pip, "--no-deps", "--require-hashes", "-r", str(LOCK)])
        _run([*pip, "--no-deps", "--no-build-isolation", "-e", "."])
        if name in OF_EXTRAS:
            _run([*pip, "-c", str(constraints), *_extra(name)])
    else:
        _run([*pip, "--upgrade", "--upgrade-strategy", "eager", "-c", str(constraints), "-e", ".[test]"])
    return python


def _extra(name: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found: list[str] = project["optional-dependencies"][name]
    return found


def versions(python: str) -> dict[str, Version]:
    """What is installed there of what pyproject.toml names."""
    listed = subprocess.run([python, "-m", "pip", "list", "--format", "freeze"], capture_output=True, check=True)
    found = dict(line.split("==") for line in listed.stdout.decode().splitlines() if "==" in line)
    names = {canonicalize_name(each.name) for each in requirements()}
    return {key: Version(version) for name, version in found.items() if (key := canonicalize_name(name)) in names}


def tried(name: str, torch: str, *, whole: bool) -> int:
    """Make an environment and run tests in it; pytest's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        python = made(name, Path(folder), torch)
        found = versions(python)
        print(
            f"{name}, made in {time.monotonic() - began:.0f} s:", *(f"{each} {found[each]}" for each in sorted(found))
        )
        if name == "oldest":
            wrong = [each for each, bound in lower_bounds().items() if each != "torch" and found.get(each) != bound]
            if wrong:
                print("lower bounds that no installation has:", *wrong)
                return 1
        sys.stdout.flush()
        tests = [python, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"]
        some = OF_EXTRAS.get(name, SEAMS)
        return subprocess.run([*tests, *([] if whole else some)], cwd=ROOT, check=False).returncode


def _made(folder: Path) -> str:
    _run([sys.executable, "-m", "venv", str(folder)])
    return str(folder / "bin" / "python")


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, cwd=ROOT, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.environments", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["oldest", "locked", "newest", *OF_EXTRAS, "lock", "clients"])
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help="of `clients`: these alone")
    parser.add_argument("--url", help="of `clients`: a running service with a model and one SAE attached")
    parser.add_argument("--all", action="store_true", help="the whole suite in place of the tests of the seams")
    parser.add_argument("--torch", default=TORCH, metavar="VERSION", help=f"in place of {TORCH}")
    given = parser.parse_args()
    if given.name == "lock":
        lock()
        return 0
    if given.name == "clients":
        from tests.clients.frame import table
        from tests.clients.listed import CLIENTS

        asked = given.clients or [each.name for each in CLIENTS]
        if unknown := {*asked}.difference(each.name for each in CLIENTS):
            parser.error(f"not a client: {', '.join(sorted(unknown))}")
        return table([each for each in CLIENTS if each.name in asked], given.url)
    return tried(given.name, given.torch, whole=given.all)


if __name__ == "__main__":
    sys.exit(main())
