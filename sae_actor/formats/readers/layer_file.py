"""Transcoder sets with one `layer_{n}.safetensors` per layer, side by side, as circuit-tracer saves and reads them.

    f = activation(x @ W_encᵀ + b_enc);  ŷ = f @ W_dec + b_dec (+ x @ W_skipᵀ)
                                                              W_enc [d_sae, d_in], W_dec [d_sae, d_out]

    relu       the usual one
    jumprelu   h · 1[h > activation_function.threshold], a tensor next to the others
    topk       the k largest h, as they are: nothing is cut off at 0

`config.yaml` says for all layers which activation it is, where x is read and ŷ written, and the model;
`wandb-config.yaml` (once spelt wanb-) is the training's own and has the sizes. Without a `config.yaml` x is the input
of the MLP, after the norm's weight, and ŷ its output.
"""

from __future__ import annotations

import re

import yaml  # type: ignore[import-untyped]  # has no types; comes with huggingface_hub

from ...domain.refs import HookPoint
from ...errors import SAEInvalidError, SAEUnsupportedError
from ..assembly import Alias, Names, assemble, check_k, layout, sizes_of
from ..config import Config
from ..file_names import Naming
from ..files import SaeFiles
from ..format import Format
from ..headers import TensorFile, scalar
from ..hook_names import parse_hook
from ..layout import Activation, Layout, Recipe
from ..settings.keys import DATA, LOGGING, MACHINE, STORED_TYPE, TRAINING, Keys, left

NAMING = Naming(
    ("layer_#.safetensors",),
    (("config.yaml",), ("wandb-config.yaml", "wanb-config.yaml")),
    one_per_file=True,
)

_FILE = re.compile(r"layer_(\d{1,3})\.safetensors")
_NAMES: Names = {
    "W_enc": (Alias("W_enc", transposed=True),),
    "b_enc": (Alias("b_enc"),),
    "W_dec": (Alias("W_dec"),),
    "b_dec": (Alias("b_dec"),),
    "W_skip": (Alias("W_skip"),),
    "threshold": (Alias("activation_function.threshold"), Alias("threshold")),
}
_K = ("k", "activation_function.k")
"""Names of a stored k."""
_REPOSITORY = re.compile(r"qwen3-(\d+(?:\.\d+)?)b-transcoders.*", re.IGNORECASE)
_K_OF_REPOSITORY = {"facebook/crv-8b-instruct-transcoders": 128}
"""A TopK set whose k stands in circuit-tracer's own source."""

_ACTIVATION = ("activation", "activation_fn", "activation_function")
_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "jumprelu": "jumprelu",
    "jump_relu": "jumprelu",
    "topk": "signed-topk",
    "top_k": "signed-topk",
}

_SHARED = {
    **left(STORED_TYPE, "dtype"),
    **left(MACHINE, "device", "seed"),
    **left("a name for pictures of the features", "scan", "scan_name", "neuronpedia_id"),
}
SET = Keys(
    heeded={
        "model_name": "",
        "model_kind": "",
        "feature_input_hook": "",
        "feature_output_hook": "",
        **dict.fromkeys(_ACTIVATION, ""),
        "k": "only a TopK transcoder has it",
    },
    irrelevant={
        **_SHARED,
        **left("the files of the set are those beside it", "transcoders", "repo_id", "revision", "subfolder"),
    },
)
RUN = Keys(
    heeded={
        "d_model": "",
        "d_feature": "",
        "model_name": "config.yaml says it",
        "feature_input_hook": "config.yaml says it",
        "feature_output_hook": "config.yaml says it",
        **dict.fromkeys(_ACTIVATION, "config.yaml, or the weights, say it"),
        "k": "only a TopK transcoder has it, and only where neither config.yaml nor the weights say it",
    },
    irrelevant={
        **_SHARED,
        **left(DATA, "dataset", "dataset_name", "dataset_path", "context_size", "ctx_len", "seq_len"),
        **left(TRAINING, "batch_size", "lr", "learning_rate", "l1_coefficient", "l0_coefficient", "n_steps"),
        **left(LOGGING, "_wandb", "wandb_version", "wandb_project", "run_name", "save_dir"),
    },
)

INPUT, OUTPUT = "mlp.hook_in", "hook_mlp_out"
"""What sets read and write whose files do not say it."""


def recognise(files: SaeFiles) -> bool:
    return bool(files.matching(_FILE))


def read(files: SaeFiles) -> Layout:
    name = files.one(_FILE)
    match = _FILE.fullmatch(name)
    assert match is not None
    layer = int(match[1])
    file = files.tensors(name)
    config = _yaml(files, "config.yaml")
    run = _plain(_yaml(files, *NAMING.configs[1]))
    kind = config.text("model_kind")
    if kind not in (None, "transcoder_set"):
        raise SAEUnsupportedError(
            f"config.yaml: model_kind {kind[:60]}", check="config.model_kind", architecture=kind[:60]
        )
    sizes = sizes_of(file, _NAMES)
    for key, size in (("d_model", sizes.d_in), ("d_feature", sizes.d_sae)):
        if run.count(key) not in (None, size):
            raise SAEInvalidError(f"{run.where}: {key} is {run.count(key)}, the tensors have {size}", check="shape")
    activation = _activation(file, config, run)
    k = check_k(_k(files, file, config, run), sizes.d_sae, name) if activation == "signed-topk" else None
    model = _model(files, config, run)
    warnings: list[str] = []
    hook_name, point = _place((config, run), "feature_input_hook", layer, model, warnings)
    _, out = _place((config, run), "feature_output_hook", layer, model, warnings)
    jumps, skips = activation == "jumprelu", "W_skip" in file
    return layout(
        file,
        assemble(
            file,
            _NAMES if jumps else {key: value for key, value in _NAMES.items() if key != "threshold"},
            sizes,
            optional=("W_skip",),
            ignored=_K if k else (),
            broadcast=("threshold",),
        ),
        Recipe(activation=activation, k=k, norm_output=False),
        sizes,
        architecture=("jumprelu_" if jumps else "") + ("skip_" if skips else "") + "transcoder",
        trained_on=model,
        trained_layer=layer,
        hook_name=hook_name,
        hook_point=point,
        hook_point_out=out,
        warnings=warnings,
        settled=[(config, SET, ""), (run, RUN, f"{run.where}: ")],
        never_negative=("threshold",),
    )


def _yaml(files: SaeFiles, *names: str) -> Config:
    """The mapping in the first of `names` that is there; without one, a config that says nothing. Plain data only, and
    no aliases: ten lines of them fill a memory."""
    name = files.first(*names)
    if name is None:
        return Config({}, names[0], absent=True)
    text = files.text(name)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise SAEInvalidError(f"{name} has aliases", check="config", file=name)
        return Config(yaml.safe_load(text), name)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SAEInvalidError(f"{name} is not valid YAML: {str(error)[:120]}", check="config", file=name) from None


def _plain(run: Config) -> Config:
    """A wandb config without what wandb puts around each value: `{desc: …, value: 8}` is 8."""
    values = {
        key: value["value"] if isinstance(value, dict) and {"value"} <= set(value) <= {"value", "desc"} else value
        for key, value in run.values.items()
    }
    return Config(values, run.where, absent=run.absent)


def _activation(file: TensorFile, config: Config, run: Config) -> Activation:
    """By the config, which may not contradict the weights, else by the weights: thresholds, a k, or neither."""
    jumps, chooses = any(alias.name in file for alias in _NAMES["threshold"]), any(key in file for key in _K)
    stored: Activation | None = "jumprelu" if jumps else "signed-topk" if chooses else None
    said = [(part, key, name) for part in (config, run) for key in _ACTIVATION if (name := part.text(key))]
    found: set[Activation] = set()
    for part, key, name in said:
        if name.lower() not in _ACTIVATIONS:
            raise part.unsupported(key)
        found.add(_ACTIVATIONS[name.lower()])
    if len(found | ({stored} if stored else set())) > 1 or (jumps and chooses) or ("jumprelu" in found and not jumps):
        names = ", ".join(sorted({*(name for _, _, name in said), *([stored] if stored else [])}))
        raise SAEInvalidError(
            f"{file.name}: config and weights contradict each other on the activation ({names[:120]})",
            check="config.activation",
        )
    return next(iter(found), stored or "relu")


def _k(files: SaeFiles, file: TensorFile, config: Config, run: Config) -> int | None:
    """k of a TopK set, on which all that say it have to agree."""
    found = {f"{part.where}: k": k for part in (config, run) if (k := part.count("k")) is not None}
    for name in _K:
        if name in file:
            stored = scalar(file.tensors[name])
            if not stored.is_integer():
                raise SAEInvalidError(f"{file.name}: {name} is {stored:g}", check="k")
            found[f"{file.name}: {name}"] = int(stored)
    if len(set(found.values())) > 1:
        raise SAEInvalidError(f"k contradicts itself: {found}", check="k")
    return next(iter(found.values()), _K_OF_REPOSITORY.get(files.origin.repository_id or ""))


def _place(
    said_by: tuple[Config, Config], key: str, layer: int, model: str | None, warnings: list[str]
) -> tuple[str, HookPoint | None]:
    """Name and hook point of one end of the set at a layer."""
    config, run = said_by
    said = config.text(key) or run.text(key)
    name = said or (INPUT if key == "feature_input_hook" else OUTPUT)
    full = name.replace("{layer}", str(layer)) if name.startswith("blocks.") else f"blocks.{layer}.{name}"
    point = parse_hook(full, transcoder_input=key == "feature_input_hook", model=model)
    if point is None:
        warnings.append(f"the hook {full[:100]} is no known hook point")
    elif point.layer != layer:
        raise SAEUnsupportedError(f"{key} {name[:80]} is in another layer than {layer}", check=f"config.{key}", key=key)
    if said is None and not config.absent:
        warnings.append(f"config.yaml does not say {key}: taken as {name}")
    return full, point


def _model(files: SaeFiles, config: Config, run: Config) -> str | None:
    if found := config.text("model_name") or run.text("model_name"):
        return found
    match = files.origin.named(_REPOSITORY)
    return f"Qwen/Qwen3-{match[1]}B" if match else None


_ARCHITECTURES = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
FORMAT = Format("layer_file", NAMING, _ARCHITECTURES, recognise, read)
