"""EleutherAI sparsify: a folder named after the module, with `cfg.json` and `sae.safetensors`; above it `config.json`.

    z = x − b_dec, unless it transcodes;  f = the k largest of max(z @ encoder.weightᵀ + encoder.bias, 0)
    x̂ = f @ W_dec + b_dec (+ x @ W_skipᵀ)

`encoder.weight` is that of torch.nn.Linear, `W_dec` is [d_sae, d_out] and not transposed. `groupmax` keeps the
largest of each of k groups of neighbours; `signed` (old) chooses by size and keeps the sign. `multi_topk` is a
matter of training.
"""

from __future__ import annotations

from ...errors import SAEInvalidError
from ..assembly import MATH, Alias, Names, Sizes, assemble, check_k, layout, side
from ..config import Config
from ..file_names import Naming
from ..files import SaeFiles
from ..format import Format
from ..hook_names import parse_hook
from ..layout import Activation, Layout, Recipe
from ..settings.keys import DATA, LOGGING, MACHINE, NO_INITIAL, TRAINING, Keys, Refused, left

WEIGHTS = "sae.safetensors"
CONFIG = "cfg.json"
NAMING = Naming((WEIGHTS,), ((CONFIG,),), needs_config=True, above=("config.json",))

_NAMES: Names = {
    "W_enc": (MATH["W_enc"][1],),
    "b_enc": (MATH["b_enc"][1],),
    "W_dec": (Alias("W_dec"),),
    "b_dec": (Alias("b_dec"),),
}

KEYS = Keys(
    heeded={
        "d_in": "",
        "num_latents": "",
        "expansion_factor": "num_latents says the width",
        "activation": "",
        "signed": "",
        "k": "",
        "skip_connection": "",
        "transcode": "",
    },
    refused={"jumprelu": Refused("thresholds of a library that forked from this one are not read")},
    irrelevant={
        "normalize_decoder": "the stored decoder is used as it is; it was kept at norm 1 in training",
        "multi_topk": "a loss of training, in which 4 k features are on; k are when the SAE is used",
        **left(NO_INITIAL, "init_enc_as_dec_transpose", "init_b_dec_as_zeros", "jumprelu_init_threshold"),
        **left(TRAINING, "jumprelu_bandwidth", "jumprelu_target_l0", "jumprelu_per_layer_l0"),
    },
)
RUN = Keys(
    heeded={"model": "", "revision": "", "load_in_8bit": ""},
    refused={"normalize_activations": Refused("activations scaled to a norm that the files do not tell of")},
    irrelevant={
        "sae": f"{CONFIG} says it of this SAE",
        **left("the folder is called after the module of this SAE", "hookpoints", "layers", "layer_stride"),
        **left(DATA, "dataset", "dataset_name", "split", "ctx_len", "max_seq_len", "max_examples", "text_column"),
        **left(DATA, "text_key", "shuffle_seed", "data_args", "exclude_tokens", "streaming", "num_training_tokens"),
        **left(MACHINE, "hf_token", "data_preprocessing_num_proc", "distribute_modules"),
        **left(TRAINING, "batch_size", "grad_acc_steps", "micro_acc_steps", "loss_fn", "optimizer", "lr"),
        **left(TRAINING, "lr_warmup_steps", "lr_scheduler_name", "k_decay_steps", "auxk_alpha", "adam_8bit"),
        **left(TRAINING, "dead_feature_threshold", "init_seeds", "seed", "finetune", "adam_epsilon", "adam_betas"),
        **left(TRAINING, "l1_coefficient", "l1_warmup_steps", "use_l2_loss", "num_norm_estimation_tokens"),
        **left(LOGGING, "save_every", "save_best", "save_dir", "log_to_wandb", "run_name", "wandb_log_frequency"),
        **left(LOGGING, "resume", "resume_from", "keep_last_n_checkpoints"),
    },
)
"""Those of the whole run, `config.json` of the folder above."""


def recognise(files: SaeFiles) -> bool:
    return files.has(WEIGHTS) and files.has(CONFIG)


def read(files: SaeFiles) -> Layout:
    cfg = files.config(CONFIG)
    KEYS.refuse(cfg)
    file = files.tensors(WEIGHTS)
    d_in = cfg.needed("d_in")
    d_sae = cfg.count("num_latents", least=0) or d_in * (cfg.count("expansion_factor") or 0)
    if not d_sae:
        raise SAEInvalidError(f"{CONFIG} says neither num_latents nor expansion_factor", check="config.num_latents")
    transcodes = cfg.boolean("transcode", default=False)
    sizes = Sizes(d_in, d_sae, side(file, _NAMES, "W_dec", 1) if transcodes else d_in)
    skip = cfg.boolean("skip_connection", default=False)
    names = {**_NAMES, "W_skip": (Alias("W_skip"),)} if skip else _NAMES
    activation = _activation(cfg)
    k = check_k(cfg.count("k"), d_sae, CONFIG)
    if activation == "groupmax" and d_sae % k:
        raise SAEInvalidError(f"{CONFIG}: {d_sae} features do not make {k} groups", check="k")
    run = files.above("config.json")
    model = None if run is None else run.text("model")
    hook_name = files.folder.name
    point = parse_hook(hook_name, transcoder_input=transcodes, model=model)
    warnings = [] if point else [f"the hook {hook_name[:100]} is no known hook point"]
    settled = [(cfg, KEYS, "")]
    if run is not None:
        RUN.refuse(run)
        if (revision := run.text("revision")) not in (None, "main"):
            warnings.append(f"trained on the model's revision {revision[:60]}")
        if run.boolean("load_in_8bit", default=False):
            warnings.append("trained on the model in 8 bits (load_in_8bit)")
        settled.append((run, RUN, f"{run.where}: "))
    return layout(
        file,
        assemble(file, names, sizes),
        Recipe(activation=activation, k=k, subtract_b_dec=not transcodes, norm_output=not transcodes),
        sizes,
        architecture=("skip_transcoder" if skip else "transcoder") if transcodes else activation,
        trained_on=model,
        hook_name=hook_name,
        hook_point=point,
        hook_point_out=parse_hook(hook_name, model=model) if transcodes else None,
        warnings=warnings,
        settled=settled,
    )


def _activation(cfg: Config) -> Activation:
    name = cfg.text("activation") or "topk"
    signed = cfg.boolean("signed", default=False)
    if name == "topk":
        return "abstopk" if signed else "topk"
    if name == "groupmax" and not signed:
        return "groupmax"
    key, why = ("signed", f", activation {name}") if name == "groupmax" else ("activation", f", signed {signed}")
    raise cfg.unsupported(key, why)


FORMAT = Format("sparsify", NAMING, ("topk", "groupmax", "abstopk", "transcoder", "skip_transcoder"), recognise, read)
