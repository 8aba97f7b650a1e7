"""What a library did to a model's weights before it read activations: undone, refused by name, or without effect.

Folding one weight into another leaves the logits as they are, and changes what is found in between.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..domain.refs import HookPoint
from ..errors import SAEUnsupportedError
from .config import Config
from .files import SaeFiles

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
    hook_name: str | None
    model: str | None

    def centred(self, files: SaeFiles) -> bool | None:
        """Whether the stream had its mean over the width taken out; None where an old release does not say.

        A library that centres the writing weights of a LayerNorm model takes the mean out of everything that is
        written to the stream. It did so by default until the config began to say, under `model_from_pretrained_kwargs`.
        """
        if self.point is None or self.point.kind not in _WRITTEN or _RMS_MODELS.search(self.model or ""):
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
        folded = []
        kind = None if self.point is None else self.point.kind
        if kind == "mlp_in" and "hook_normalized" not in (self.hook_name or ""):
            folded.append(("fold_ln", "it read what a norm gives without the norm's own weight"))
        if kind == "attn_z" and not _NO_VALUE_BIAS.search(self.model or ""):
            folded.append(("fold_value_biases", "it read what the heads give without the value bias"))
        for key, why in folded:
            if self._says(key):
                raise SAEUnsupportedError(f"{key} true: {why}", check=f"config.{key}", key=key)

    def checkpoints(self) -> list[str]:
        """Warnings that it was another state of the model than its name alone says."""
        keys = ("revision", "checkpoint_index", "checkpoint_value")
        said = [(key, value) for part in self.kwargs for key in keys if (value := part.get(key)) not in (None, "main")]
        return [f"trained on the model's {key.replace('_', ' ')} {str(value)[:60]}" for key, value in said]
