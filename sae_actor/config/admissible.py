"""What a value of a type may be, in words for whoever gave another one."""

from __future__ import annotations

from typing import Any

from msgspec import inspect


def admissible(type_: Any) -> str:
    """`a whole number from 0 to 65535`; the description of a type's `Meta`, where it has one."""
    return _in_words(inspect.type_info(type_))


def _in_words(info: inspect.Type) -> str:
    match info:
        case inspect.Metadata(extra_json_schema={"description": str(said)}):
            return said
        case inspect.Metadata():
            return _in_words(info.type)
        case inspect.IntType() | inspect.FloatType():
            kind = "a whole number" if isinstance(info, inspect.IntType) else "a number"
            return f"{kind}{_bounds(info)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType():
            return f"one of {', '.join(map(str, info.values))}"
        case inspect.UnionType():
            return " or ".join(_in_words(each) for each in info.types if not isinstance(each, inspect.NoneType))
        case inspect.VarTupleType():
            return f"a list, each of it {_in_words(info.item_type)}"
        case _:
            return "text"


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    if info.ge is not None and info.le is not None:
        return f" from {info.ge:.15g} to {info.le:.15g}"
    above = f" above {info.gt:.15g}" if info.gt is not None else f" from {info.ge:.15g}" if info.ge is not None else ""
    return f"{above} up to {info.le:.15g}" if info.le is not None else above
