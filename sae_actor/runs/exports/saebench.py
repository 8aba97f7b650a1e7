"""An evaluation in the shape of SAEBench's `core` results.

Where SAEBench and the definitions of our summary differ, the number is ours, under the name that it has there, and
`eval_result_unstructured` says what it is. As there, −1 stands for what is not a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from ...domain.measuring.specs import EvaluateSpec
from ...domain.measuring.state import RunState
from ...domain.state import SaeRecord
from ...errors import NotFoundError
from ...ports import ComparedRows
from ..evaluate import COMPARED, STATE, Sums, compared_of, sums_of
from ..job import GROUP
from ..store import RunFolder

NONE = -1.0
SAELENS = "saelens:"
DEFINITIONS = {
    "explained_variance": "1 - sum |x - x'|^2 / sum |x - mean|^2 over all counted tokens; SAEBench 0.6 prints another",
    "explained_variance_legacy": f"mean over tokens of 1 - |x - x'|^2 / |x - mean of its {GROUP} texts|^2",
    "mse": "mean over counted tokens of |x - x'|^2; SAEBench divides by the size of its batch once more",
    "ce_loss, kl_div": "every position with a next token; what is excluded passes unchanged in all passes",
    "consistent_activation_heuristic": "tokens firing / contexts firing",
    "-1": "there is no such number",
}


class CoreConfig(Struct, frozen=True, kw_only=True):
    model_name: str
    llm_dtype: str
    batch_size_prompts: int = GROUP
    n_eval_reconstruction_batches: int
    n_eval_sparsity_variance_batches: int
    dataset: str
    context_size: int
    compute_kl: bool = True
    compute_ce_loss: bool = True
    compute_l2_norms: bool = True
    compute_sparsity_metrics: bool = True
    compute_variance_metrics: bool = True
    compute_featurewise_density_statistics: bool = True
    compute_featurewise_weight_based_metrics: bool = True
    exclude_special_tokens_from_reconstruction: bool
    verbose: bool = False


class CoreFeature(Struct, frozen=True, kw_only=True):
    index: int
    feature_density: float
    consistent_activation_heuristic: float
    encoder_bias: float
    encoder_norm: float
    encoder_decoder_cosine_sim: float
    max_decoder_cosine_sim: float
    max_encoder_cosine_sim: float


class CoreMetrics(Struct, frozen=True, kw_only=True):
    model_behavior_preservation: dict[str, float]
    model_performance_preservation: dict[str, float]
    reconstruction_quality: dict[str, float]
    shrinkage: dict[str, float]
    sparsity: dict[str, float]
    token_stats: dict[str, int]
    misc_metrics: dict[str, float]


class CoreResult(Struct, frozen=True, kw_only=True):
    """An evaluation as SAEBench's `core` writes it."""

    eval_type_id: str = "core"
    eval_config: CoreConfig
    eval_id: str
    """The run's."""
    datetime_epoch_millis: int
    """When it was asked for."""
    eval_result_metrics: CoreMetrics
    eval_result_details: tuple[CoreFeature, ...]
    eval_result_unstructured: dict[str, Any]
    """Digests of weights, texts and environments; what was left out; definitions."""
    sae_bench_commit_hash: str
    """`sae-actor` and its version: no code of SAEBench was run."""
    sae_lens_id: str | None
    sae_lens_release_id: str | None
    """Of an SAE that was found by its name in SAELens' registry."""
    sae_lens_version: str | None
    sae_cfg_dict: dict[str, Any] | None


def saebench(folder: RunFolder, run: RunState, record: SaeRecord | None) -> CoreResult:
    """Of a completed run of kind `evaluate`. record: its SAE's, if there still is one. Blocks."""
    with closing(folder.open(run.run_id)) as file:
        sums, compared = sums_of(file.kept(STATE)), compared_of(file.kept(COMPARED))
        kept = file.kept_like("environment ")
    if compared is None:
        raise NotFoundError("the run kept nothing of the SAE's weights", run_id=run.run_id)
    environments = {name.split()[1]: msgspec.json.decode(data) for name, data in kept.items()}
    return core_result(run, sums, compared, environments, record)


def core_result(
    run: RunState,
    sums: Sums,
    compared: ComparedRows,
    environments: Mapping[str, Mapping[str, Any]],
    record: SaeRecord | None,
) -> CoreResult:
    spec = msgspec.convert(run.spec, EvaluateSpec)
    summary = run.summary or {}
    latest = environments.get(run.environments[-1], {}) if run.environments else {}
    release, sae_lens_id = _sae_lens(record)
    texts = run.texts[0]
    return CoreResult(
        eval_config=CoreConfig(
            model_name=run.model.model_id,
            llm_dtype=str(latest.get("dtype", "unknown")),
            n_eval_reconstruction_batches=sums.groups,
            n_eval_sparsity_variance_batches=sums.groups,
            dataset=texts.file or texts.texts_id or f"sha256:{texts.sha256}",
            context_size=spec.context,
            exclude_special_tokens_from_reconstruction="special" in spec.exclude,
        ),
        eval_id=run.run_id,
        datetime_epoch_millis=int(datetime.fromisoformat(run.created_at).timestamp() * 1000),
        eval_result_metrics=_metrics(summary, compared),
        eval_result_details=_features(summary, sums, compared),
        eval_result_unstructured={
            "exclude": list(spec.exclude),
            "excluded_tokens": summary.get("excluded"),
            "model": msgspec.to_builtins(run.model),
            "saes": msgspec.to_builtins(run.saes),
            "weights_sha256": run.saes[0].weights_sha256,
            "texts_sha256": texts.sha256,
            "rows_sha256": run.rows_sha256,
            "environment_sha256": list(run.environments),
            "environments": {name: dict(found) for name, found in environments.items()},
            "fvu": summary.get("fvu"),
            "density_histogram": summary.get("density_histogram"),
            "definitions": DEFINITIONS,
        },
        sae_bench_commit_hash=f"sae-actor {latest.get('sae_actor', 'unknown')}",
        sae_lens_id=sae_lens_id,
        sae_lens_release_id=release,
        sae_lens_version=None,
        sae_cfg_dict=None if record is None or record.sae is None else msgspec.to_builtins(record.sae),
    )


def _metrics(summary: Mapping[str, Any], compared: ComparedRows) -> CoreMetrics:
    def some(*names: str) -> dict[str, float]:
        return {name: NONE if (value := summary.get(name)) is None else float(value) for name in names}

    tokens = int(summary.get("tokens", 0))
    counted = tokens - int(summary.get("excluded", 0))
    return CoreMetrics(
        model_behavior_preservation=some("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"),
        model_performance_preservation=some(
            "ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae"
        ),
        reconstruction_quality=some("explained_variance", "explained_variance_legacy", "mse", "cossim"),
        shrinkage=some("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"),
        sparsity=some("l0", "l1"),
        token_stats={"total_tokens_eval_reconstruction": tokens, "total_tokens_eval_sparsity_variance": counted},
        misc_metrics={
            **some(
                "freq_over_1_percent",
                "freq_over_10_percent",
                "normalized_freq_over_1_percent",
                "normalized_freq_over_10_percent",
            ),
            "average_max_encoder_cosine_sim": _mean(compared.nearest_encoder_cosine),
            "average_max_decoder_cosine_sim": _mean(compared.nearest_decoder_cosine),
            **some("frac_alive"),
        },
    )


def _features(summary: Mapping[str, Any], sums: Sums, compared: ComparedRows) -> tuple[CoreFeature, ...]:
    counted = int(summary.get("tokens", 0)) - int(summary.get("excluded", 0))
    in_texts = sums.texts_firing or [0] * len(sums.firing)  # groups of an older version count no texts
    return tuple(
        CoreFeature(
            index=index,
            feature_density=firing / counted if counted else NONE,
            consistent_activation_heuristic=firing / texts if texts else NONE,
            encoder_bias=compared.encoder_bias[index],
            encoder_norm=compared.encoder_norm[index],
            encoder_decoder_cosine_sim=(compared.encoder_decoder_cosine or {index: NONE})[index],
            max_decoder_cosine_sim=compared.nearest_decoder_cosine[index],
            max_encoder_cosine_sim=compared.nearest_encoder_cosine[index],
        )
        for index, (firing, texts) in enumerate(zip(sums.firing, in_texts, strict=True))
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else NONE


def _sae_lens(record: SaeRecord | None) -> tuple[str | None, str | None]:
    """Release and id, of a name like `saelens:RELEASE/ID`."""
    name = "" if record is None else record.named_as or ""
    release, _, sae_id = name.removeprefix(SAELENS).partition("/")
    return (release, sae_id) if name.startswith(SAELENS) else (None, None)
