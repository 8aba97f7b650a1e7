"""Layouts that are known and not read, so that the answer says why."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..errors import SAEUnsupportedError

CLT = (
    "a cross-layer transcoder reads at one layer and writes at several: that takes an attachment at several hook "
    "points; a transcoder of one layer is read"
)
CROSSCODER = (
    "a crosscoder reads and writes several layers at once: that takes an attachment that waits for the last of them "
    "before it writes to the first; an SAE of one layer is read"
)
TEMPORAL = (
    "a temporal SAE attends over the tokens before when it encodes: that takes an encoder that keeps a state for each "
    "text, and here a token's features are read from that token alone"
)
_LAYERS = re.compile(r"params_layer_\d+\.safetensors")
_CLT = re.compile(r"W_(?:enc|dec)_\d+\.safetensors")
_TEMPORAL = {"latest_ckpt.safetensors", "conf.yaml"}


def refusal_of(names: Collection[str], named: str | None = None) -> SAEUnsupportedError | None:
    """Why the folder with the files `names` is refused, or the file `named` in it; None where it is not."""
    if any(_CLT.fullmatch(name) for name in (names if named is None else [named])):
        return SAEUnsupportedError(CLT, architecture="clt")
    if any(_LAYERS.fullmatch(name) for name in (names if named is None else [named])):
        several = f"one file for each of several layers: {CROSSCODER}; {CLT}"
        return SAEUnsupportedError(several, architecture="crosscoder")
    if names and set(names) >= _TEMPORAL:
        return SAEUnsupportedError(TEMPORAL, architecture="temporal")
    return None
