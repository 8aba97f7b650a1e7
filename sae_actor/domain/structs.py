"""Structs made of others: what two of them call the same is the same."""

from __future__ import annotations

from typing import Any, TypeVar

from msgspec import Struct

S = TypeVar("S", bound=Struct)


def filled(type_: type[S], *sources: object | None, **own: Any) -> S:
    """Its fields are `own`, or come under the same name from the first of the sources that has it. What no source has
    is null where one of them is not there (yet); else it keeps its default, and without one that is a fault."""
    for name in type_.__struct_fields__:
        if name not in own:
            source = next((each for each in sources if hasattr(each, name)), None)
            if source is not None:
                own[name] = getattr(source, name)
            elif None in sources:
                own[name] = None
    return type_(**own)
