"""Words of the command line as values; each raises `argparse.ArgumentTypeError`, which says what is wrong."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

from ..ports.clock import as_rfc3339

COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")
"""Endings of compressed archives: an export cannot be one, so such a destination is refused."""
SIGNED = re.compile(r"-[0-9.]")


def edit(text: str) -> tuple[int, float]:
    feature, equals, strength = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not FEATURE=STRENGTH")
    if not feature.isascii() or not feature.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: {feature!r} is not a feature; features are numbered 0, 1, 2, …")
    if not strength:
        raise argparse.ArgumentTypeError(f"{text!r} has no strength after '='")
    try:
        return int(feature), number(strength)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: the strength {error}") from None


def shaded(text: str) -> tuple[str | None, int]:
    """The beginning of an SAE's id, or None, and a feature."""
    sae, colon, feature = text.rpartition(":")
    if not feature.isascii() or not feature.isdigit() or len(feature) > 9 or (colon and not sae):
        raise argparse.ArgumentTypeError(f"{text!r} is not FEATURE or SAE:FEATURE; features are numbered 0, 1, 2, …")
    return sae or None, int(feature)


def is_flag(text: str) -> bool:
    """Whether it is an unknown option; `-1=5` is an edit of an unknown feature."""
    return text.startswith("-") and not SIGNED.match(text)


def layer(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a layer; layers are numbered from 0")
    return int(text)


def number(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return found


def position(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is not a position of the log")
    return int(text)


def head(text: str) -> tuple[int, str]:
    at, _, digest = text.partition(":")
    if not re.fullmatch(r"[0-9a-f]{64}", digest.lower()) or position(at) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not POSITION:HASH, as `log verify` prints it")
    return position(at), digest.lower()


def time(text: str) -> str:
    found = as_rfc3339(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-01-31T12:00:00Z")
    return found


def moment(text: str) -> int | str:
    return position(text) if text.isascii() and text.isdigit() else time(text)


def reason(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the reason is not UTF-8") from None
    if not text.strip():
        raise argparse.ArgumentTypeError("the reason is empty")
    return text


def destination(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() in COMPRESSED:
        raise argparse.ArgumentTypeError(f"{text!r}: an export must be a folder or an uncompressed .tar")
    return path
