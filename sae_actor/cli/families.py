"""`families`: the model families and their hook points, and the modules in the blocks of another model."""

from __future__ import annotations

import argparse

from ..models.families import FAMILIES, TEXT_PART
from . import exit_codes
from .render.answers import table


def run(arguments: argparse.Namespace) -> int:
    """Print the known families, or the modules of one model, of which only the config is fetched."""
    if arguments.check is None:
        print(table(["model type", "hook points", "lacks"], [_row(name) for name in sorted(FAMILIES)]))
        parts = ", ".join(f"{name} ({text})" for name, text in sorted(TEXT_PART.items()))
        print(f"\nOf multimodal models the text part is loaded: {parts}")
        return exit_codes.OK
    _check(arguments.check, arguments.revision)
    return exit_codes.OK


def _row(name: str) -> list[str]:
    family = FAMILIES[name]
    lacks = "; ".join(f"{kind}: {reason}" for kind, reason in family.lacks.items())
    return [name, " ".join(family.places), lacks or "—"]


def _check(model: str, revision: str) -> None:
    from ..engine.model.outline import outline_of  # noqa: PLC0415 — torch takes seconds, and nothing else needs it

    found = outline_of(model, revision)
    known = "supported" if found.model_type in FAMILIES else "not supported"
    print(f"model type {found.model_type}: {known}")
    for kind in found.kinds:
        where = f"{found.blocks}.{{{','.join(map(str, kind.layers))}}}"
        print(f"\n{where}")
        for module in kind.modules:
            print(f"  {module}")
    print("\nrows of sae_actor/models/families.py whose modules are all there (tests must show that they do the same):")
    for names, kinds in found.fitting.items():
        print(f"  {', '.join(names)}: {' '.join(kinds)}")
    if not found.fitting:
        print("  none")
