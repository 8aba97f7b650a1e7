"""The lines of a file of labels: ours, Neuronpedia's explanations, features, activations and sources, and delphi's.

{"feature": 584, "label": "God and nature", "source": "me"}
{"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "index": "584", "description": "God and nature", …}
{"layers.15_latent584": "God and nature"}                     delphi's explanations, by the name of their file
{"latent": "layers.15_latent584", "explanation": "God and nature"}

delphi writes a file for each latent, `layers.15_latent584.txt`, which holds the explanation as a JSON string. A name
may be that of the file, with its folders: `jq -c '{(input_filename): .}' explanations/*.txt` makes lines of them.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from ..errors import BadRequestError, FeatureOutOfRangeError, TooLargeError
from .matching import LabelsOrigin, Matching

MAX_LINE = 4 * 2**20
"""Bytes."""
EXPANDED = 16
"""How many times the limit of an upload its lines may have together."""
GZIP = b"\x1f\x8b"
TOP = 10
"""Tokens that are kept of each list."""
_LATENT = re.compile(r"(?:.*_)?latent_?(\d{1,10})(?:\.txt)?")
_INDEX = re.compile(r"[0-9]{1,10}")

SourceName: TypeAlias = Annotated[
    str, Meta(pattern=r"\A[^\x00-\x1f\x7f@][^\x00-\x1f\x7f]*\Z", max_length=200, description="who says so")
]
LabelText: TypeAlias = Annotated[str, Meta(min_length=1, max_length=8192)]


class Labelled(Struct, frozen=True):
    feature: int
    label: str
    score: float | None = None
    created: str = ""


class Measured(Struct, frozen=True, omit_defaults=True):
    """Statistics of a feature; what is None or empty is not known."""

    feature: int = 0
    density: float | None = None
    max: float | None = None
    top_tokens: tuple[str, ...] = ()
    promoted: tuple[str, ...] = ()
    """Tokens whose logits it raises most."""


class Seen(Struct, frozen=True):
    """An example: tokens of a text with the feature's activation at each."""

    feature: int
    tokens: tuple[str, ...]
    activations: tuple[float, ...]

    @property
    def max(self) -> float:
        return max(self.activations, default=0.0)

    @property
    def top_token(self) -> str:
        best = max(range(len(self.activations)), key=self.activations.__getitem__, default=-1)
        return self.tokens[best] if best >= 0 else ""


Entry: TypeAlias = Labelled | Measured | Seen


class _Ours(Struct, frozen=True, forbid_unknown_fields=True):
    feature: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    label: LabelText
    source: SourceName | None = None


_NAMES = {
    "model": "modelId",
    "created": "createdAt",
    "largest": "maxActApprox",
    "density": "frac_nonzero",
    "promoted": "pos_str",
    "hook_name": "hookName",
    "repository_id": "hfRepoId",
    "folder": "hfFolderId",
}


class _Score(Struct, frozen=True):
    value: float | None = None


class _Theirs(Struct, frozen=True, rename=_NAMES):
    """All fields that are read of the lines of others; what else they have is passed over."""

    model: str | None = None
    layer: str | int | None = None
    index: str | int | None = None
    description: str | None = None
    created: str | None = None
    scores: tuple[_Score, ...] = ()
    largest: float | None = None
    density: float | None = None
    promoted: tuple[str, ...] = ()
    vector: tuple[float, ...] | None = None
    hook_name: str | None = None
    tokens: tuple[str, ...] | None = None
    values: tuple[float, ...] | None = None
    repository_id: str | None = None
    folder: str | None = None
    latent: str | int | None = None
    explanation: str | None = None

    @property
    def origin(self) -> LabelsOrigin:
        layer = None if self.layer is None else str(self.layer)
        width = None if not self.vector else len(self.vector)
        return LabelsOrigin(self.model, layer, self.hook_name, width, self.repository_id, self.folder)


_OURS = msgspec.json.Decoder(_Ours)
_THEIRS = msgspec.json.Decoder(_Theirs)
_ANY = msgspec.json.Decoder(dict[str, Any])


def entries(path: Path, matching: Matching, source: str, limit: int) -> Iterator[tuple[str, Entry]]:
    """Source and entry of each line. source: of lines that name none. limit: bytes of an upload.

    Raises `BadRequestError` (with `line`), `TooLargeError`, `SAEIncompatibleError` for a file of another SAE, and
    `FeatureOutOfRangeError`.
    """
    for number, line in _lines(path, limit):
        try:
            yield from _read(line, matching, source)
        except msgspec.ValidationError as error:
            raise BadRequestError(f"line {number}: {str(error)[:300]}", line=number) from None
        except (ValueError, RecursionError) as error:
            raise BadRequestError(f"line {number} is not JSON: {str(error)[:200] or 'too deep'}", line=number) from None
        except (BadRequestError, FeatureOutOfRangeError) as error:
            raise type(error)(f"line {number}: {error.detail}", **{**error.fields, "line": number}) from None


def _lines(path: Path, limit: int) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as plain:
        zipped = plain.read(2) == GZIP
        plain.seek(0)
        file: IO[bytes] = gzip.GzipFile(fileobj=plain) if zipped else plain  # type: ignore[assignment]
        number = size = 0
        try:
            while line := file.readline(MAX_LINE + 1):
                number, size = number + 1, size + len(line)
                if len(line) > MAX_LINE:
                    raise BadRequestError(f"line {number} has more than {MAX_LINE} bytes", line=number)
                if size > EXPANDED * limit:
                    raise TooLargeError(f"the lines have more than {EXPANDED * limit} bytes", limit=EXPANDED * limit)
                if line.strip():
                    yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise BadRequestError(f"the gzip data is damaged after line {number}", line=number) from None


def _read(line: bytes, matching: Matching, source: str) -> Iterator[tuple[str, Entry]]:
    if b'"feature"' in line and (ours := _ours(line)) is not None:
        matching.check_feature(ours.feature)
        yield ours.source or source, Labelled(ours.feature, ours.label)
        return
    theirs = _THEIRS.decode(line)
    if theirs.repository_id is not None and theirs.index is None:
        matching.check(theirs.origin)
        return
    if theirs.index is None and theirs.latent is None:
        for name, label in _ANY.decode(line).items():
            feature = _latent(name)
            if feature is None or not isinstance(label, str) or not label:
                raise BadRequestError("the line is none of the known kinds: it has no feature and no index")
            matching.check_module(name)
            matching.check_feature(feature)
            yield source, Labelled(feature, label)
        return
    feature = _latent(theirs.latent) if theirs.index is None else _index(theirs.index)
    if feature is None:
        raise BadRequestError("the number of the feature cannot be read")
    if theirs.index is not None:
        matching.check(theirs.origin, feature)
    elif isinstance(theirs.latent, str):
        matching.check_module(theirs.latent)
    matching.check_feature(feature)
    found = [*_said(theirs, feature)]
    if not found:
        raise BadRequestError("the line says nothing of the feature: no description, statistics, tokens or explanation")
    for entry in found:
        yield source, entry


def _ours(line: bytes) -> _Ours | None:
    """None for a line of others, whose text happens to have the word."""
    try:
        return _OURS.decode(line)
    except msgspec.ValidationError:
        if "feature" in _ANY.decode(line):
            raise
        return None


def _said(line: _Theirs, feature: int) -> Iterator[Entry]:
    label = line.description or line.explanation
    if label and label.strip():
        scores = [each.value for each in line.scores if each.value is not None and math.isfinite(each.value)]
        yield Labelled(feature, label.strip(), max(scores, default=None), line.created or "")
    if line.largest is not None or line.density is not None or line.promoted:
        yield Measured(feature, _finite(line.density), _finite(line.largest), promoted=line.promoted[:TOP])
    if line.tokens is not None and line.values is not None:
        if len(line.tokens) != len(line.values):
            raise BadRequestError(f"{len(line.tokens)} tokens have {len(line.values)} values")
        yield Seen(feature, line.tokens, line.values)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _index(value: str | int) -> int | None:
    return int(value) if _INDEX.fullmatch(str(value)) else None


def _latent(name: str | int | None) -> int | None:
    """The number in delphi's name of a latent."""
    if isinstance(name, int):
        return name
    found = _LATENT.fullmatch(name or "")
    return None if found is None else int(found[1])
