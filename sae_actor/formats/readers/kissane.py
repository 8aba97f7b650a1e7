"""Kissane's attention SAEs for GPT-2: `NAME.pt` and `NAME_cfg.json` at the repository's root, on flattened hook_z.

f = relu((z − b_dec) @ W_enc + b_enc);  ẑ = f @ W_dec + b_dec        mathematical orientation
"""

from __future__ import annotations

import re

from ...errors import SAEInvalidError
from ..assembly import Alias, Names, Sizes, assemble, layout
from ..file_names import Naming
from ..files import SaeFiles
from ..format import Format
from ..hook_names import parse_hook
from ..layout import Layout, Recipe
from ..settings.keys import DATA, LOGGING, MACHINE, NO_INITIAL, STORED_TYPE, TRAINING, Keys, Refused, left

NAMING = Naming(("*.pt", "*.safetensors"), (("{stem}_cfg.json",),), needs_config=True, one_per_file=True)

_FILE = re.compile(r"(.+)\.(?:pt|safetensors)")
_NAMES: Names = {name: (Alias(name),) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}

VALUE_BIAS = (
    "trained on hook_z of a library that may move the value bias into the output's: a model's own heads then "
    "differ by it"
)

KEYS = Keys(
    heeded={"act_size": "", "dict_size": "", "act_name": "", "model_name": "", "layer": ""},
    refused={
        "head": Refused("one attention head is no hook point", (None, "cat")),
        "concat_heads": Refused("the heads are read one after the other", (None, True)),
    },
    irrelevant={
        "site": "act_name says it",
        "dict_mult": "dict_size says the width",
        "name": "a name of the run",
        **left(STORED_TYPE, "enc_dtype"),
        **left(MACHINE, "device"),
        **left(NO_INITIAL, "b_dec_init", "reinit", "seed"),
        **left(DATA, "num_tokens", "seq_len", "model_batch_size"),
        **left(TRAINING, "batch_size", "buffer_mult", "buffer_size", "buffer_batches", "lr", "l1_coeff", "beta1"),
        **left(TRAINING, "beta2", "remove_rare_dir", "resample_scheme", "anthropic_neuron_resample_scale"),
        **left(TRAINING, "dead_direction_cutoff", "re_init_every", "anthropic_resample_last", "resample_factor"),
        **left(TRAINING, "num_resamples", "anthropic_resample_batches", "sched_type", "sched_epochs"),
        **left(TRAINING, "sched_lr_factor", "sched_warmup_epochs", "sched_finish"),
        **left(LOGGING, "wandb_project_name", "wandb_entity", "save_state_dict_every", "eval_every"),
    },
)


def recognise(files: SaeFiles) -> bool:
    return any(files.has(_config(name)) for name in files.matching(_FILE))


def read(files: SaeFiles) -> Layout:
    found = [name for name in files.matching(_FILE) if files.has(_config(name))]
    if len(found) != 1:
        raise SAEInvalidError(f"{len(found)} SAEs are in this folder, name one file", check="ambiguous")
    cfg = files.config(_config(found[0]))
    KEYS.refuse(cfg)
    d_in, d_sae = cfg.needed("act_size"), cfg.needed("dict_size")
    file = files.tensors(found[0])
    sizes = Sizes(d_in, d_sae, d_in)
    hook_name = cfg.text("act_name")
    point = parse_hook(hook_name)
    warnings = [VALUE_BIAS]
    layer = cfg.count("layer", least=0)
    if layer is not None and point is not None and layer != point.layer:
        warnings.append(f"layer is {layer}, act_name says {point.layer}: the name counts")
    return layout(
        file,
        assemble(file, _NAMES, sizes),
        Recipe(subtract_b_dec=True, heads=True),
        sizes,
        architecture="standard",
        trained_on=cfg.text("model_name"),
        hook_name=hook_name,
        hook_point=point,
        warnings=warnings,
        settled=[(cfg, KEYS, "")],
    )


def _config(name: str) -> str:
    return f"{name.rpartition('.')[0]}_cfg.json"


FORMAT = Format("kissane", NAMING, ("standard",), recognise, read)
