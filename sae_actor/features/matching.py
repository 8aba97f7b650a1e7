"""Whether a file of labels is of this SAE: by repository and folder or by name, else by what it says of itself."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..domain.state import SaeRecord
from ..errors import FeatureOutOfRangeError, SAEIncompatibleError

_WIDTH = re.compile(r"(?:^|-)(\d{1,4})([km])(?=-|$)")
_LAYER = re.compile(r"(\d{1,4})(?=-|$)")
_HOOK_LAYER = re.compile(r"(?:blocks|layers)\.(\d{1,4})\.")
_MODULE_LAYER = re.compile(r"(?:^|[./])(?:(?:blocks|layers|h)\.|layer_)(\d{1,4})(?=[./_]|$)")
NEURONPEDIA = "neuronpedia:"


class LabelsOrigin(NamedTuple):
    """What a line of Neuronpedia's says of the SAE that it is about."""

    model: str | None = None
    source: str | None = None
    """`20-gemmascope-res-16k`."""
    hook_name: str | None = None
    d_out: int | None = None
    repository_id: str | None = None
    folder: str | None = None


class Matching:
    """Checks the lines of one file; all of them must be of the same SAE."""

    def __init__(self, record: SaeRecord) -> None:
        assert record.sae is not None, "the files are complete"
        self._record = record
        self._sae = record.sae
        self._agreed: tuple[str | None, str | None] | None = None

    def check_feature(self, feature: int) -> None:
        d_sae = self._sae.d_sae
        if not 0 <= feature < d_sae:
            raise FeatureOutOfRangeError(
                f"{self._record.sae_id} has features 0 to {d_sae - 1}, not {feature}", feature=feature, d_sae=d_sae
            )

    def check(self, origin: LabelsOrigin, feature: int = 0) -> None:
        """Raises `SAEIncompatibleError`."""
        if feature >= self._sae.d_sae:
            self._refuse(f"they name feature {feature}, and it has {self._sae.d_sae}", d_sae=self._sae.d_sae)
        if origin.repository_id is not None:
            self._placed(origin.repository_id, origin.folder or "")
            return
        if origin.model is not None or origin.source is not None:
            whose = (origin.model, origin.source)
            if self._agreed not in (None, whose):
                self._refuse(f"the file is of several SAEs: {_name(*self._agreed or ())} and {_name(*whose)}")
            if self._agreed is None:
                self._named(*whose)
                self._agreed = whose
        if origin.d_out not in (None, self._sae.d_out):
            self._refuse(f"its vectors have {origin.d_out} numbers, and its rows {self._sae.d_out}")
        theirs, mine = _layer_of_hook(origin.hook_name), _layer_of_hook(self._sae.hook_name)
        if None not in (theirs, mine) and theirs != mine:
            self._refuse(f"they are of {origin.hook_name}, and it was trained at {self._sae.hook_name}")

    def check_module(self, latent: str) -> None:
        """By delphi's name of a latent, which begins with the module whose output was read: `layers.15_latent584`.
        Raises `SAEIncompatibleError`."""
        found, hook = _MODULE_LAYER.search(latent), self._sae.hook_name or ""
        mine = {self._sae.trained_layer, _layer_of_hook(hook)} - {None}
        if "resid_pre" in hook:
            mine |= {layer - 1 for layer in mine if layer is not None}  # the output of the block before
        if found is not None and mine and int(found[1]) not in mine:
            trained = hook or f"layer {', '.join(map(str, mine))}"
            self._refuse(f"they are of {latent.rpartition('_latent')[0] or latent}, and it was trained at {trained}")

    def _placed(self, repository_id: str, folder: str) -> None:
        mine = self._record.repository_id
        if mine is None:
            return
        here, there = (self._record.path or "").strip("/"), folder.strip("/")
        if repository_id != mine or here != there:
            self._refuse(f"they are of {repository_id} at {there or 'its root'}", repository_id=repository_id)

    def _named(self, model: str | None, source: str | None) -> None:
        """By Neuronpedia's name, if the SAE was found under one; else by layer and width in the source's name."""
        known = self._record.named_as or ""
        if known.startswith(NEURONPEDIA):
            if known != f"{NEURONPEDIA}{model}/{source}":
                self._refuse(f"they are of {_name(model, source)}, and it is {known.removeprefix(NEURONPEDIA)}")
            return
        layer, width = _LAYER.match(source or ""), _WIDTH.search(source or "")
        mine = self._sae.trained_layer
        if layer is not None and mine is not None and int(layer[1]) != mine:
            self._refuse(f"they are of {_name(model, source)}, and it was trained at layer {mine}")
        if width is not None and not _as_wide(int(width[1]), width[2], self._sae.d_sae):
            self._refuse(f"they are of {_name(model, source)}, and it has {self._sae.d_sae} features")

    def _refuse(self, why: str, **fields: object) -> None:
        raise SAEIncompatibleError(
            f"the labels are another SAE's than {self._record.sae_id}: {why}", sae_id=self._record.sae_id, **fields
        )


def _layer_of_hook(name: str | None) -> int | None:
    found = _HOOK_LAYER.search(name or "")
    return None if found is None else int(found[1])


def _as_wide(number: int, unit: str, d_sae: int) -> bool:
    """Whether `16k` or `1m` may be short for this width: of thousands or of 1,024s."""
    thousand, binary = (1000, 1024) if unit == "k" else (1000**2, 1024**2)
    return number in (d_sae // thousand, d_sae // binary)


def _name(model: str | None = None, source: str | None = None) -> str:
    return "/".join(part for part in (model, source) if part) or "an SAE without a name"
