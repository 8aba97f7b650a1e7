"""The layers of the package, read from its imports: arrows point down, and torch stays where it belongs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sae_actor"

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "access": set(),
    "counting": set(),
    "libraries": set(),
    "lfs": set(),
    "domain": {"errors"},
    "families": {"domain"},
    "modelfiles": {"errors", "families", "lfs"},
    "ports": {"domain", "errors"},
    "formats": {"domain", "errors", "lfs"},
    "eventlog": {"ports", "domain", "errors"},
    "hub": {"ports", "domain", "errors", "formats", "lfs", "modelfiles"},
    "sae": {"domain", "errors", "formats"},
    "architectures": {"domain", "errors", "families"},
    "engine": {"libraries", "ports", "domain", "errors", "formats", "sae", "architectures", "modelfiles"},
    "actor": {"counting", "ports", "domain", "errors"},
    "api": {"access", "actor", "counting", "ports", "domain", "errors"},
}
"""Room → rooms below it. Rooms that are not named here are wiring, and may import everything."""
WIRING = {
    "__init__",
    "__main__",
    "adapters",
    "capabilities",
    "cli",
    "client",
    "config",
    "deferred",
    "demo",
    "listening",
    "logs",
    "reproducing",
    "serve",
    "tracing",
    "variables",
    "wanted",
}

HEAVY = {"torch", "transformers", "numpy", "safetensors", "tokenizers", "accelerate", "gguf"}
MAY_BE_HEAVY = {"sae", "architectures", "engine"}
MAY_BE_HEAVY_INSIDE = MAY_BE_HEAVY | {"formats", "demo"}
"""Where a function may import what is heavy when it is called."""
HEAVY_MODULES = {"sae_actor/demo/conversion.py", "sae_actor/formats/pickle_child.py"}
"""Loaded where they are needed and by nothing else: the first start of the demo; a child process."""

PURE = {"__future__", "collections", "hashlib", "re", "typing", "uuid", "msgspec"}
"""All that the rules may know: no clock, no file, no task, no randomness. (A draft gets its id from uuid.)"""


class Import(NamedTuple):
    path: Path
    name: str
    """Absolute, such as `sae_actor.domain.refs`."""
    lazy: bool
    """Inside a function: not loaded with the module."""

    @property
    def room(self) -> str:
        return room_of(self.path)

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    @property
    def room_of_target(self) -> str:
        return self.name.split(".")[1] if "." in self.name else "__init__"


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports() -> Iterator[Import]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield from _of(path, ast.parse(path.read_text(encoding="utf-8")), lazy=False)


def _of(path: Path, node: ast.AST, *, lazy: bool) -> Iterator[Import]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(path, alias.name, lazy)
    elif isinstance(node, ast.ImportFrom):
        base = _absolute(path, node)
        for alias in node.names:
            inside = (PACKAGE.parent / base.replace(".", "/") / alias.name).with_suffix(".py")
            is_room = base == "sae_actor" and (inside.exists() or inside.with_suffix("").is_dir())
            yield Import(path, f"{base}.{alias.name}" if is_room else base, lazy)
    inner = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _of(path, child, lazy=inner)


def _absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = path.relative_to(ROOT).parts[: -node.level]
    return ".".join((*package, *(node.module or "").split("."))).rstrip(".")


IMPORTS = list(imports())


def test_every_room_has_its_place() -> None:
    assert {room_of(path) for path in PACKAGE.rglob("*.py")} <= set(MAY_IMPORT) | WIRING


def test_imports_point_down() -> None:
    wrong = [
        f"{each.path.relative_to(ROOT)} imports {each.name}"
        for each in IMPORTS
        if each.top == "sae_actor"
        and each.room in MAY_IMPORT
        and each.room_of_target not in MAY_IMPORT[each.room] | {each.room, "__init__"}
    ]
    assert wrong == []


def test_down_is_down() -> None:
    order = list(MAY_IMPORT)
    for room, below in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(room) for other in below)


def test_what_is_heavy_stays_where_it_belongs() -> None:
    wrong = [
        f"{each.path.relative_to(ROOT)} imports {each.name}"
        for each in IMPORTS
        if each.top in HEAVY
        and each.room not in (MAY_BE_HEAVY_INSIDE if each.lazy else MAY_BE_HEAVY)
        and str(each.path.relative_to(ROOT)) not in HEAVY_MODULES
    ]
    assert wrong == []


def test_the_rules_are_pure() -> None:
    wrong = [
        f"{each.path.relative_to(ROOT)} imports {each.name}"
        for each in IMPORTS
        if each.room in ("domain", "errors") and each.top not in PURE | {"sae_actor"}
    ]
    assert wrong == []


LIGHT = ["domain.decide", "domain.projections", "ports", "actor", "eventlog", "hub", "api", "cli", "client", "config",
         "libraries", "adapters", "capabilities", "demo", "serve", "formats"]  # fmt: skip


@pytest.mark.parametrize("room", LIGHT)
def test_what_runs_without_torch(room: str) -> None:
    """In a process of its own, since this one may have loaded anything."""
    code = f"import sys, sae_actor.{room}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", "")


def test_no_file_is_too_long_to_read() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}
