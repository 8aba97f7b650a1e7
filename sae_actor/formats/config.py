"""Configuration files of SAEs, read as data that may be wrong or hostile.

JSON has no NaN, Infinity or second copy of a key, and no size of an SAE needs more than 18 digits: such files
are refused, and every value is taken out by the type it must have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import SAEInvalidError, SAEUnsupportedError

MAX_CONFIG_BYTES = 4 << 20
"""A runner config with a dataset's worth of settings has some tens of kilobytes."""
MAX_SIZE = 2**31 - 1
"""Largest width of anything; `Feature` of the domain ends there too."""


def strict_json(text: bytes, where: str, check: str = "config") -> Any:
    """The JSON value in `text`. `SAEInvalidError` (check `check`) for what the format does not allow."""

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a number of JSON")

    def integer(digits: str) -> int:
        if len(digits) > 19:
            raise ValueError("an integer of more than 18 digits")
        return int(digits)

    def decimal(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError(f"{digits[:20]} is not finite")
        return value

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs more than once")
        return found

    try:
        return json.loads(
            text.decode("utf-8-sig"),
            parse_constant=constant,
            parse_int=integer,
            parse_float=decimal,
            object_pairs_hook=unique,
        )
    except (ValueError, RecursionError) as error:
        raise SAEInvalidError(f"{where} is not valid JSON: {_short(error)}", check=check, file=where) from None


def _short(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]


class Config:
    """One config object and the name of the file it came from; getters refuse values of the wrong type."""

    def __init__(self, values: Any, where: str, *, absent: bool = False) -> None:
        if not isinstance(values, dict):
            raise SAEInvalidError(f"{where} does not hold a JSON object", check="config", file=where)
        self.values: dict[str, Any] = values
        self.where = where
        self.absent = absent
        """It stands for a section that is not there."""
        self.asked: set[str] = set()
        """Keys whose values were looked at."""
        self._sections: dict[str, Config] = {}

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str) -> Any:
        """The value as it is; None where there is none."""
        self.asked.add(key)
        return self.values.get(key)

    def invalid(self, key: str, wanted: str) -> SAEInvalidError:
        shown = repr(self.values.get(key))[:80]
        return SAEInvalidError(f"{self.where}: {key} must be {wanted}, not {shown}", check=f"config.{key}")

    def unsupported(self, key: str, why: str = "") -> SAEUnsupportedError:
        """That a value is of a kind that is refused, by the key's name."""
        detail = f"{self.where}: {key} {str(self.values.get(key))[:60]}{why}"
        return SAEUnsupportedError(detail, **{"check": f"config.{key}", "key": key})

    def section(self, key: str) -> Config:
        """A nested object, the same each time; an absent one is empty."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.invalid(key, "an object")
        if key not in self._sections:
            self._sections[key] = Config(value or {}, f"{self.where}: {key}", absent=value is None)
        return self._sections[key]

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self.invalid(key, "a string")

    def boolean(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.invalid(key, "true or false")
        return value

    def number(self, key: str) -> float | None:
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.invalid(key, "a number")
        return float(value)

    def positive(self, key: str) -> float | None:
        value = self.number(key)
        if value is not None and value <= 0:
            raise self.invalid(key, "a number above 0")
        return value

    def count(self, key: str, *, least: int = 1) -> int | None:
        """A whole number in [least, 2^31); 8.0 counts as 8, since some writers pass sizes through a float."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_SIZE:
            raise self.invalid(key, f"a whole number from {least}")
        return value

    def same_count(self, keys: Sequence[str]) -> int | None:
        """The value that all present spellings of one size agree on."""
        found = {key: value for key in keys if (value := self.count(key)) is not None}
        if len(set(found.values())) > 1:
            raise SAEInvalidError(f"{self.where}: sizes contradict each other: {found}", check=f"config.{keys[0]}")
        return next(iter(found.values()), None)

    def needed(self, *keys: str) -> int:
        """A size, by any of its spellings."""
        value = self.same_count(keys)
        if value is None:
            raise SAEInvalidError(f"{self.where} does not say {keys[0]}", check=f"config.{keys[0]}")
        return value
