"""Fields of answers: their types, for the description too, and where their values come from."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, TypeVar

from msgspec import Meta, Struct

Position: TypeAlias = Annotated[int, Meta(ge=0, description="of an event in the log")]
Bytes: TypeAlias = Annotated[int, Meta(ge=0)]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Digest: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Time: TypeAlias = Annotated[
    str, Meta(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z\Z", description="UTC")
]
Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Of positions, each from its first up to the one that follows its last."""

V = TypeVar("V", bound=Struct)


def filled(type_: type[V], *sources: object | None, **own: Any) -> V:
    """A view: its fields are `own`, or come under the same name from the first of the sources that has it. What no
    source has is null where one of them is not there (yet), else a fault."""
    for name in type_.__struct_fields__:
        if name not in own:
            source = next((each for each in sources if hasattr(each, name)), None)
            own[name] = None if source is None and None in sources else getattr(source, name)
    return type_(**own)
