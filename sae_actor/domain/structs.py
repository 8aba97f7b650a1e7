"""Build a struct from the fields of others, by name."""

from __future__ import annotations

from typing import Any, TypeVar

from msgspec import Struct

S = TypeVar("S", bound=Struct)


def filled(type_: type[S], *sources: object | None, **own: Any) -> S:
    """Each field comes from `own`, else from the first source that has it. If no source has it: null if any source is
    None, else the field's default; without a default, `TypeError`."""
    for name in type_.__struct_fields__:
        if name not in own:
            source = next((each for each in sources if hasattr(each, name)), None)
            if source is not None:
                own[name] = getattr(source, name)
            elif None in sources:
                own[name] = None
    return type_(**own)
