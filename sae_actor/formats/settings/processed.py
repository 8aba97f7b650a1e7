"""What a library did to a model's weights before it read activations: undone, refused by name, or without effect.

Folding one weight into another leaves the logits as they are, and changes what is found in between.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...domain.refs import HookPoint
from ...errors import SAEUnsupportedError
from ..config import Config
from ..files import SaeFiles

_RMS_MODELS = re.compile(r"gemma|llama|mistral|mixtral|qwen|smollm|olmo|deepseek", re.IGNORECASE)
"""Models without LayerNorm: their writing weights cannot be centred, whatever the config asked for."""
_NO_VALUE_BIAS = re.compile(r"gemma|llama|mistral|mixtral|qwen-?3|smollm|olmo", re.IGNORECASE)
"""Models whose values have no bias that could be folded into the output's."""
_CENTRED_RELEASES = {
    "GPT2-Small-SAEs-Reformatted",
    "GPT2-Small-Feature-Splitting-Experiment-Layer-8",
    "gpt2-small-mlp-out-saes",
}
"""Repositories of older GPT-2 sets that were trained on centred writing weights, and whose files do not say so."""
_WRITTEN = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


CENTRED = "trained on a stream with its mean taken out: the mean is removed before encoding and put back after"

MAYBE_CENTRED = (
    "trained before its library wrote down whether it took the mean out of the stream; activations are used as they "
    "are (set model_from_pretrained_kwargs.center_writing_weights in cfg.json if it did)"
)


@dataclass(frozen=True)
class Processed:
    """The `model_from_pretrained_kwargs` of a config (those of its metadata too), and where its SAE reads."""

    kwargs: Sequence[Config]
    point: HookPoint | None
    model: str | None

    def centred(self, files: SaeFiles) -> bool | None:
        """Whether the stream had its mean over the width taken out; None where an old release does not say.

        A library that centres the writing weights of a LayerNorm model takes the mean out of everything that is
        written to the stream. It did so by default until the config began to say, under `model_from_pretrained_kwargs`.
        """
        point = self.point
        on_stream = point is not None and (point.kind in _WRITTEN or (point.kind, point.before) == ("mlp_in", "norm"))
        if not on_stream or _RMS_MODELS.search(self.model or ""):
            return False
        if any("center_writing_weights" in part for part in self.kwargs):
            return self._says("center_writing_weights")
        names = {(files.origin.repository_id or "").rpartition("/")[2], *files.origin.parts}
        if not _CENTRED_RELEASES.isdisjoint(names):
            return True
        return None if all(part.absent for part in self.kwargs) else False

    def _says(self, key: str) -> bool:
        return True in [part.boolean(key, default=False) for part in self.kwargs]  # each of them is looked at

    def refuse_folding(self) -> None:
        """`SAEUnsupportedError` where a weight was folded out of what the SAE reads."""
        if self.point is None or self.point.kind != "attn_z" or _NO_VALUE_BIAS.search(self.model or ""):
            return
        if self._says("fold_value_biases"):
            raise SAEUnsupportedError(
                "fold_value_biases true: it read what the heads give without the value bias",
                **{"check": "config.fold_value_biases", "key": "fold_value_biases"},
            )

    def may_lack_value_bias(self, training_version: str) -> bool:
        """Whether heads may have given their values without the bias: the library moved it after them up to 3.21."""
        if self.point is None or self.point.kind != "attn_z" or _NO_VALUE_BIAS.search(self.model or ""):
            return False
        version = re.match(r"(\d{1,4})\.(\d{1,4})", training_version)
        return version is None or (int(version[1]), int(version[2])) < (3, 22)

    def checkpoints(self) -> list[str]:
        """Warnings that it was another state of the model than its name alone says."""
        keys = ("revision", "checkpoint_index", "checkpoint_value")
        said = [(key, value) for part in self.kwargs for key in keys if (value := part.get(key)) not in (None, "main")]
        return [f"trained on the model's {key.replace('_', ' ')} {str(value)[:60]}" for key, value in said]
