"""The lock, the ranges and the README say the same of what is installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sae_actor.engine.decoding.recurrent import CACHE_ARGUMENTS
from tests.environments import LOCK, ROOT, TORCH, lower_bounds, pinned, requirements

README = (ROOT / "README.md").read_text("utf-8")
TEXT = LOCK.read_text("utf-8")
RELIED_ON = {"transformers", "uvicorn", "aiosqlite", "torch", "huggingface_hub", "litestar", "llguidance", "msgspec"}
"""Libraries whose insides or argument names the code knows."""


@pytest.mark.parametrize("each", list(requirements()), ids=lambda each: each.name)
def test_the_lock_is_inside_the_ranges(each: Requirement) -> None:
    """What pyproject.toml names is pinned, at a version that it lets in."""
    found = pinned()[each.name.replace("_", "-")] if each.name != "torch" else {TORCH}
    assert all(each.specifier.contains(str(version), prereleases=True) for version in found)


def test_every_range_begins_at_what_was_run_and_ends_where_we_rely_on_more() -> None:
    """`oldest` installs the bounds, and says which of them it could not."""
    named = {each.name: {bound.operator for bound in each.specifier} for each in requirements()}
    assert {name for name in named if name.replace("_", "-") not in lower_bounds()} == {"pytest-anyio"}
    assert {name for name, operators in named.items() if "<" in operators} == RELIED_ON


def test_the_lock_has_hashes_and_no_address() -> None:
    packages = re.split(r"^(?=[a-z0-9])", TEXT, flags=re.MULTILINE)[1:]
    assert len(packages) > 100
    assert all("--hash=sha256:" in each for each in packages)
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", TEXT)
    assert "setuptools" in pinned()
    assert not [name for name in pinned() if name.startswith(("torch", "nvidia", "sae-actor"))]


def test_each_command_of_the_readme_is_a_line_under_the_lock() -> None:
    commands = re.findall(r"^```bash(?: tests)?\n(python3 -m venv .*)\n```$", README, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        torch, locked, project = re.findall(r"\.venv/bin/pip install ([^&]+) &&", command)
        assert torch == f"torch=={TORCH}"
        assert locked == f"--no-deps --require-hashes -r {LOCK.relative_to(ROOT)}"
        assert re.fullmatch(r"--no-deps --no-build-isolation (-e )?\.", project)


def test_the_readme_tells_the_ranges() -> None:
    """A row of its table is a range of pyproject.toml."""
    shown = dict(re.findall(r"^\| (\w+) \| ([\d.]+ to [\d.]+) \|", README, re.MULTILINE))
    told = {}
    for each in requirements():
        bounds = {bound.operator: bound.version for bound in each.specifier}
        if "<" in bounds:
            *front, last = bounds["<"].split(".")
            told[each.name] = f"{bounds['>=']} to {'.'.join((*front, str(int(last) - 1)))}"
    assert shown == told


def test_one_place_knows_what_a_cache_is_called() -> None:
    """A library that renames an argument is met where the name is chosen, and nowhere else."""
    knowing = [
        str(path.relative_to(ROOT))
        for path in sorted(Path(ROOT / "sae_actor").rglob("*.py"))
        if CACHE_ARGUMENTS[1] in path.read_text("utf-8")
    ]
    assert knowing == ["sae_actor/engine/decoding/recurrent.py"]
