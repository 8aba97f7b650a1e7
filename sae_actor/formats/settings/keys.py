"""What becomes of every key of a settings file: heeded, refused by name, or left with its reason on record.

A reader declares the keys of its files as data (`Keys`) and settles each file with an `Account` once it has read all
that it wants. So nothing that a file says is passed over in silence: what is known to play no part stands in the SAE's
record with the reason, and what nobody knows is a warning.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import Config
from ..file_names import PICKLES
from ..headers import TensorFile

_SHOWN = 12
"""Unknown keys that a warning names; a hostile file may have many."""

TRAINING = "a matter of training"
DATA = "says which texts it was trained on"
LOGGING = "says how the training was watched and kept"
MACHINE = "says what it was trained on and with"
STORED_TYPE = "the weights keep the type that they are stored in; attaching may ask for another"
UNASKED = "the other settings leave nothing open for it to say"
NO_INITIAL = "the weights' first values; the stored ones are used"


def left(reason: str, *keys: str) -> dict[str, str]:
    """Keys that play no part, all for one reason."""
    return dict.fromkeys(keys, reason)


@dataclass(frozen=True)
class Refused:
    """A key that changes numbers or the place in a way that is not computed here."""

    why: str
    neutral: tuple[Any, ...] = (None, False)
    """Values that change nothing."""

    def is_neutral(self, value: Any) -> bool:
        return any(type(value) is type(each) and value == each for each in self.neutral)


@dataclass(frozen=True)
class Keys:
    """The keys of one settings object."""

    heeded: Mapping[str, str] = field(default_factory=dict)
    """Key → the reason on record where this SAE gave no cause to ask for it; none: the usual one (`UNASKED`)."""
    refused: Mapping[str, Refused] = field(default_factory=dict)
    irrelevant: Mapping[str, str] = field(default_factory=dict)
    """Key → why it plays no part, whatever it says."""

    def refuse(self, cfg: Config) -> None:
        """`SAEUnsupportedError`, by the key's name, where one of `refused` says more than nothing."""
        for key, refused in self.refused.items():
            if not refused.is_neutral(cfg.get(key)):
                raise cfg.unsupported(key, f": {refused.why}")


class Account:
    """What became of all the keys of one SAE."""

    def __init__(self) -> None:
        self.ignored: dict[str, str] = {}
        self._unknown: list[str] = []

    def settle(self, cfg: Config, keys: Keys, at: str = "") -> None:
        """Note what of `cfg` was left; to be called when all else has been read. `at` goes before each key's name."""
        for key, value in cfg.values.items():
            if key in keys.heeded:
                if value not in (None, {}, []) and key not in cfg.asked:
                    self.ignored[at + key] = keys.heeded[key] or UNASKED
            elif key in keys.irrelevant:
                self.ignored[at + key] = keys.irrelevant[key]
            elif key not in keys.refused:
                self._unknown.append(at + key)

    def tensors(self, file: TensorFile, reasons: Mapping[str, str]) -> None:
        """Note which of the stored tensors that play no part are there."""
        self.ignored |= {name: reason for name, reason in reasons.items() if name in file}

    def extras(self, file: TensorFile, known: Collection[str] = (), at: str = "") -> None:
        """Note the plain values of a pickle that nobody knows; the metadata of safetensors are a library's own."""
        if file.name.endswith(PICKLES) or file.origin is not None:
            self._unknown += [at + key for key in file.extras if key not in known]

    @property
    def warnings(self) -> tuple[str, ...]:
        if not self._unknown:
            return ()
        shown = ", ".join(
            key if len(key) < 80 and key.isprintable() else ascii(key)[:80] for key in self._unknown[:_SHOWN]
        )
        more = f" and {len(self._unknown) - _SHOWN} more" if len(self._unknown) > _SHOWN else ""
        return (f"settings that nobody here knows, and that are not heeded: {shown}{more}",)
