"""Layouts that are known and not read, so that the answer says why."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..errors import SAEUnsupportedError

_CLT = re.compile(r"W_(?:enc|dec)_\d+\.safetensors")
_TEMPORAL = {"latest_ckpt.safetensors", "conf.yaml"}


def refusal_of(names: Collection[str], named: str | None = None) -> SAEUnsupportedError | None:
    """Why the folder with the files `names` is refused, or the file `named` in it; None where it is not."""
    if any(_CLT.fullmatch(name) for name in (names if named is None else [named])):
        return SAEUnsupportedError(
            "a cross-layer transcoder reads at one layer and writes at several, which is no one hook point",
            architecture="clt",
        )
    if names and set(names) >= _TEMPORAL:
        return SAEUnsupportedError(
            "a temporal SAE attends over the whole sequence when it encodes", architecture="temporal"
        )
    return None
