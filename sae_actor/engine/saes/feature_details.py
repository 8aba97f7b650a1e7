"""One feature of an SAE, from its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ...domain.refs import HookPoint
from ...formats.settings.statistics import Statistics
from ...ports import FeatureDetails, NearFeature, TokenWeight
from ...sae import SAE
from ..model.loading import LoadedModel

SHOWN = 10
"""Nearest features, tokens promoted, tokens suppressed."""
INTO_RESIDUAL = frozenset({"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"})
"""Hook kinds in the residual stream, which the unembedding reads; not those before a norm."""
PLAIN = (torch.float32, torch.bfloat16, torch.float16)


def feature_details(
    sae: SAE, feature: int, written_at: HookPoint, statistics: Statistics, model: LoadedModel | None
) -> FeatureDetails:
    """Reads the whole decoder, and with a model the whole unembedding: for the device thread."""
    row = sae.decoder_rows(torch.tensor([feature], device=sae.device))[0].float()  # [d_out]
    weights = sae.weights
    bias = weights.get("b_enc", weights.get("b_mag"))
    promoted, suppressed = _tokens(row, written_at, model)
    recorded = statistics.recorded.get(feature)
    return FeatureDetails(
        feature=feature,
        decoder_norm=float(row.norm()),
        bias=None if bias is None else float(bias[feature]),
        threshold=float(weights["threshold"][feature]) if "threshold" in weights else None,
        nearest=_nearest(sae, feature),
        promoted=promoted,
        suppressed=suppressed,
        label=recorded.label if recorded is not None else next(iter(sae.spec.names[feature : feature + 1]), None),
        max_activation=statistics.maxima.get(feature),
        density=None if recorded is None else recorded.density,
        top_tokens=() if recorded is None else recorded.top_tokens,
    )


def _nearest(sae: SAE, feature: int) -> tuple[NearFeature, ...]:
    """By the cosine between decoder rows, the feature itself apart. Rows of zeros are near to nothing."""
    W, norms = sae.W_dec, sae.decoder_norms.float()
    along = (W @ W[feature]).float()  # [d_sae]
    length = norms * norms[feature]
    cosines = torch.where(length > 0, along / length.clamp_min(torch.finfo(torch.float32).tiny), 0)
    cosines[feature] = -torch.inf
    best = cosines.topk(min(SHOWN, len(cosines) - 1))
    return tuple(NearFeature(*pair) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _tokens(
    row: Tensor, written_at: HookPoint, model: LoadedModel | None
) -> tuple[tuple[TokenWeight, ...], tuple[TokenWeight, ...]]:
    """W_U @ d, largest and smallest. The final norm is left out: its scale differs from token to token."""
    unembedding = None if model is None else model.network.get_output_embeddings()
    if model is None or unembedding is None or written_at.kind not in INTO_RESIDUAL or written_at.before == "norm":
        return (), ()
    gain = model.architecture.hook(written_at).gain
    row = row if gain is None else row * gain.gain
    W: Tensor = unembedding.weight  # [vocabulary, hidden]
    if W.ndim != 2 or W.shape[1] != len(row) or W.dtype not in PLAIN:  # or it is quantised
        return (), ()
    weights = (W @ row.to(W.dtype)).float()
    both = []
    for sign in (1, -1):
        best = (sign * weights).topk(min(SHOWN, len(weights)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        both.append(
            tuple(TokenWeight(token, model.tokenizer.pieces(token)[0], sign * weight) for token, weight in pairs)
        )
    return both[0], both[1]
