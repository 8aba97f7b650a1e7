"""Layouts that are known and not read, so that the answer says why."""

from __future__ import annotations

import re

from ..errors import SAEUnsupportedError
from .files import SaeFiles

_CLT = re.compile(r"W_(?:enc|dec)_\d+\.safetensors")


def refuse_by_name(files: SaeFiles) -> None:
    """`SAEUnsupportedError` where the files are those of a kind that is refused."""
    if files.matching(_CLT):
        raise SAEUnsupportedError(
            "a cross-layer transcoder reads at one layer and writes at several, which is no one hook point",
            architecture="clt",
        )
    if files.has("latest_ckpt.safetensors") and files.has("conf.yaml"):
        raise SAEUnsupportedError(
            "a temporal SAE attends over the whole sequence when it encodes", architecture="temporal"
        )
