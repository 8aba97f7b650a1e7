"""The layers of the package, read from its imports: arrows point down, and torch stays where it belongs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sae_actor"

EVENTS = {"errors", "domain.chats", "domain.refs", "domain.weights", "domain.events"}
DOMAIN = EVENTS | {"domain", "domain.folds", "domain.evolve", "domain.rules", "domain.decide", "domain.views"}
ENGINE = {"engine.failures", "engine.memory", "engine.interventions", "engine.tokens", "engine.decoding",
          "engine.model", "engine.saes"}  # fmt: skip
HTTP = {"api.types", "api.problems", "api.operations", "api.requests"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "limits": {"errors"},
    "domain.chats": set(),
    "domain.refs": {"errors"},
    "domain.weights": {"domain.refs"},
    "domain.events": EVENTS,
    "domain": EVENTS,
    "domain.folds": EVENTS | {"domain"},
    "domain.evolve": EVENTS | {"domain", "domain.folds"},
    "domain.rules": EVENTS | {"domain", "domain.folds"},
    "domain.decide": EVENTS | {"domain", "domain.folds", "domain.rules"},
    "domain.views": EVENTS | {"domain", "domain.folds", "domain.evolve"},
    "ports": DOMAIN,
    "config": DOMAIN | {"limits"},
    "telemetry": {"ports", "config"},
    "formats": DOMAIN,
    "formats.settings": DOMAIN | {"formats"},
    "formats.assembly": DOMAIN | {"formats", "formats.settings"},
    "formats.readers": DOMAIN | {"formats", "formats.settings", "formats.assembly"},
    "formats.vectors": DOMAIN | {"formats", "formats.settings", "formats.assembly"},
    "formats.registry": DOMAIN | {"formats", "formats.readers", "formats.vectors"},
    "models": DOMAIN | {"formats"},
    "eventlog": DOMAIN | {"ports"},
    "eventlog.index": DOMAIN | {"limits", "ports", "eventlog"},
    "eventlog.audit": DOMAIN | {"ports", "eventlog", "eventlog.index"},
    "hub": DOMAIN | {"limits", "ports", "formats", "formats.registry", "formats.vectors", "models"},
    "hub.child": DOMAIN | {"ports", "formats", "formats.registry", "models", "hub"},
    "backups": DOMAIN | {"limits", "ports", "eventlog", "eventlog.audit", "hub"},
    "sae": DOMAIN | {"formats", "formats.registry"},
    "measuring": set(),
    "features": DOMAIN | {"ports", "formats", "formats.settings"},
    "engine.failures": DOMAIN,
    "engine.memory": DOMAIN | {"engine.failures"},
    "engine.interventions": DOMAIN | {"ports", "models", "sae", "engine.failures"},
    "engine.tokens": DOMAIN | {"ports"},
    "engine.decoding": DOMAIN | {"limits", "ports", "engine.failures", "engine.interventions", "engine.tokens"},
    "engine.model": DOMAIN | {"ports", "models", "telemetry"} | ENGINE - {"engine.saes"},
    "engine.saes": DOMAIN | {"ports", "formats", "formats.settings", "sae"} | ENGINE,
    "engine": DOMAIN | {"ports", "formats", "formats.settings", "models", "sae"} | ENGINE,
    "subscriptions": DOMAIN | {"limits", "ports"},
    "actor": DOMAIN | {"limits", "ports", "subscriptions", "telemetry"},
    "generations": DOMAIN | {"limits", "ports", "subscriptions", "telemetry", "actor"},
    "runs": DOMAIN | {"limits", "ports", "eventlog", "measuring", "subscriptions", "telemetry", "actor", "generations"},
    "api.types": set(),
    "api.problems": DOMAIN | {"api.types"},
    "api.operations": DOMAIN | {"api.types"},
    "api.requests": DOMAIN | {"api.types"},
    "api.guard": DOMAIN | HTTP | {"limits", "config", "telemetry", "generations"},
    "api.openapi": DOMAIN | HTTP | {"ports"},
    "api": DOMAIN | HTTP | {"limits", "ports", "config", "eventlog.index", "actor", "features", "subscriptions",
                            "generations", "runs", "api.guard", "api.openapi"},
    "api.server": DOMAIN | HTTP | {"api.guard"},
    "api.text": DOMAIN | HTTP | {"limits", "ports", "measuring", "eventlog.index", "actor", "subscriptions",
                                 "generations", "api", "api.openapi"},
    "api.runs": DOMAIN | HTTP | {"ports", "actor", "generations", "runs", "api", "api.openapi", "api.text"},
    "api.routes.audit": DOMAIN | HTTP | {"ports", "eventlog", "eventlog.audit", "subscriptions", "api"},
    "api.routes": DOMAIN | HTTP | {"ports", "config", "telemetry", "actor", "features", "subscriptions",
                                   "generations", "api", "api.guard", "api.openapi", "api.runs", "api.routes.audit"},
    "api.web": HTTP,
    "api.app": DOMAIN | HTTP | {"api", "api.guard", "api.openapi", "api.routes", "api.routes.audit", "api.runs",
                                "api.text", "api.web"},
}  # fmt: skip
"""Room → rooms below it. A module belongs to the longest of these names that its own begins with. Rooms that are not
named here are wiring, and may import everything."""
WIRING = {"cli", "client", "demo", "reproducing", "service", "__main__"}

HEAVY = {"torch", "transformers", "numpy", "safetensors", "tokenizers", "accelerate", "gguf"}
MAY_BE_HEAVY = {"sae", "engine", "measuring"}
MAY_BE_HEAVY_INSIDE = MAY_BE_HEAVY | {"formats", "demo", "runs"}
"""Where a function may import what is heavy when it is called."""
HEAVY_MODULES = {"sae_actor.demo.conversion", "sae_actor.formats.pickle_child"}
"""Loaded where they are needed and by nothing else: the first start of the demo; a child process."""

PURE = {"__future__", "collections", "hashlib", "math", "re", "typing", "uuid", "msgspec"}
"""All that the rules may know: no clock, no file, no task, no randomness. (A draft gets its id from uuid.)"""

MOST_MODULES = 14
"""In a folder, its `__init__` not counted."""
MOST_LINES = 350


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


class Import(NamedTuple):
    importer: str
    name: str
    """Absolute, such as `sae_actor.domain.refs`."""
    lazy: bool
    """Inside a function: not loaded with the module."""
    only_types: bool
    """Under `TYPE_CHECKING`."""

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.importer} imports {self.name}"


def room_of(module: str) -> str:
    """`sae_actor.domain.rules.edits` → `domain.rules`; the first part of the name where no room is that long."""
    parts = module.split(".")[1:]
    rooms = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((room for room in rooms if room in MAY_IMPORT), parts[0] if parts else "")


def imports() -> Iterator[Import]:
    for name, tree in TREES.items():
        yield from _of(name, tree, lazy=False, only_types=False)


def _of(module: str, node: ast.AST, *, lazy: bool, only_types: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(module, alias.name, lazy, only_types)
    elif isinstance(node, ast.ImportFrom):
        base = _absolute(module, node)
        for alias in node.names:
            inside = f"{base}.{alias.name}"
            yield Import(module, inside if inside in MODULES else base, lazy, only_types)
    only_types |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    lazy |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _of(module, child, lazy=lazy, only_types=only_types)


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    return ".".join((*package[: len(package) - node.level + 1], *(node.module or "").split("."))).rstrip(".")


IMPORTS = list(imports())


def points_down(each: Import) -> bool:
    """Within a room, to a room below, or from the door of a room to what is in it."""
    room, target = room_of(each.importer), room_of(each.name)
    if room not in MAY_IMPORT or target in ("", room) or target in MAY_IMPORT[room]:
        return True
    is_door = MODULES[each.importer].name == "__init__.py"
    return is_door and each.name.startswith(f"{each.importer}.")


def circles() -> list[list[str]]:
    """Modules that import each other, by whatever way; imports inside functions and under `TYPE_CHECKING` count."""
    after: dict[str, set[str]] = defaultdict(set)
    for each in IMPORTS:
        if each.name in MODULES and each.name != each.importer:
            after[each.importer].add(each.name)

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for name in after[waiting.pop()] - found:
                found.add(name)
                waiting.append(name)
        return found

    reach = {name: reached(name) for name in MODULES}
    found = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in MODULES}
    return [list(circle) for circle in sorted(found) if circle]


def named_twice() -> dict[str, list[str]]:
    """Classes of one name in several modules."""
    where: dict[str, list[str]] = defaultdict(list)
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                where[node.name].append(name)
    return {name: modules for name, modules in sorted(where.items()) if len(modules) > 1}


def crowded() -> dict[str, int]:
    """Folders with more modules than one looks through."""
    folders: dict[str, int] = defaultdict(int)
    for path in MODULES.values():
        folders[str(path.parent.relative_to(ROOT))] += path.name != "__init__.py"
    return {folder: count for folder, count in folders.items() if count > MOST_MODULES}


def long_files() -> dict[str, int]:
    lines = {str(path.relative_to(ROOT)): path.read_text("utf-8").count("\n") for path in MODULES.values()}
    return {path: count for path, count in lines.items() if count > MOST_LINES}


def test_every_room_has_its_place() -> None:
    assert {room_of(name) for name in MODULES} <= set(MAY_IMPORT) | WIRING | {""}


def test_imports_point_down() -> None:
    wrong = [str(each) for each in IMPORTS if each.top == "sae_actor" and not points_down(each)]
    assert wrong == []


def test_down_is_down() -> None:
    order = list(MAY_IMPORT)
    for room, below in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(room) for other in below - {room})


def test_there_is_no_circle() -> None:
    assert circles() == []


def test_no_class_is_named_twice() -> None:
    assert named_twice() == {}


def test_no_folder_is_crowded() -> None:
    assert crowded() == {}


def test_no_file_is_too_long_to_read() -> None:
    assert long_files() == {}


def test_what_is_heavy_stays_where_it_belongs() -> None:
    wrong = [
        str(each)
        for each in IMPORTS
        if each.top in HEAVY
        and not each.only_types
        and each.importer.split(".")[1] not in (MAY_BE_HEAVY_INSIDE if each.lazy else MAY_BE_HEAVY)
        and each.importer not in HEAVY_MODULES
    ]
    assert wrong == []


def test_the_rules_are_pure() -> None:
    wrong = [
        str(each)
        for each in IMPORTS
        if each.importer.split(".")[1:2] in (["domain"], ["errors"]) and each.top not in PURE | {"sae_actor"}
    ]
    assert wrong == []


LIGHT = ["domain.decide", "domain.views.resources", "ports", "actor", "subscriptions", "generations", "eventlog", "hub",
         "api", "cli", "client", "config", "models.families", "telemetry.libraries", "telemetry.logs", "demo",
         "service.adapters", "service.capabilities", "service.process", "formats"]  # fmt: skip


@pytest.mark.parametrize("room", LIGHT)
def test_what_runs_without_torch(room: str) -> None:
    """In a process of its own, since this one may have loaded anything."""
    code = f"import sys, sae_actor.{room}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", "")
