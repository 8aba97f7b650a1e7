"""What this build can do, read from the code itself."""

from __future__ import annotations

import typing
from importlib.metadata import PackageNotFoundError, version

from .. import __version__
from ..config import Settings
from ..domain.refs import MAX_EDITS, MAX_STRENGTH, Exclusion, HookKind, Method, Mode, NamedPositions, Unit
from ..domain.structs import filled
from ..domain.views.capabilities import Capabilities, Limits
from ..formats import FORMATS
from ..models.families import FAMILIES, TEXT_PART

LIBRARIES = ("torch", "transformers", "safetensors", "huggingface_hub", "litestar", "msgspec")


def capabilities(settings: Settings) -> Capabilities:
    """Formats, architectures, hook points, steering methods, limits, versions. The model is added from the state."""
    return Capabilities(
        version=__version__,
        formats=tuple(each.name for each in FORMATS),
        architectures=tuple(sorted({name for each in FORMATS for name in each.architectures})),
        hook_points=typing.get_args(HookKind),
        families={name: tuple(sorted(family.places)) for name, family in sorted(FAMILIES.items())},
        families_without={name: family.lacks for name, family in sorted(FAMILIES.items()) if family.lacks},
        text_parts=dict(sorted(TEXT_PART.items())),
        methods=typing.get_args(Method),
        modes=typing.get_args(Mode),
        positions=(*typing.get_args(NamedPositions), "tokens", "from/to", "role"),
        exclusions=typing.get_args(Exclusion),
        units=typing.get_args(Unit),
        conditions=("when", "stop_when"),
        limits=filled(Limits, settings.gpu, settings.engine, max_edits=MAX_EDITS, max_strength=MAX_STRENGTH),
        versions={name: _version(name) for name in LIBRARIES},
        model=None,
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
