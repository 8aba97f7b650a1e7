"""An evaluation worked out plainly, one text at a time, in float64: the definitions, and nothing of the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sae_actor.sae import load_sae

FACTOR = 5.0


def evaluated(
    model_folder: str | Path,
    sae_folder: str | Path,
    texts: Sequence[Sequence[int]],
    module: Callable[[Any], torch.nn.Module],
    *,
    sinks: bool = True,
    group: int = 64,
) -> dict[str, float]:
    """The numbers, by the names of the summary; `module` is the block whose output the SAE reads."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64).eval()
    sae = load_sae(str(sae_folder), dtype="float64")
    xs, new, outs, acts = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    ces: dict[str, list[Tensor]] = {"clean": [], "sae": [], "abl": []}
    kls: dict[str, list[Tensor]] = {"sae": [], "abl": []}
    for text in texts:
        ids = torch.tensor([list(text)])
        kept: list[Tensor] = []
        clean = _run(model, module(model), ids, partial(_kept, kept))
        x = kept[0]
        norms = x.norm(dim=-1)
        out = (norms > FACTOR * norms[:512].median()) if sinks else torch.zeros(len(x), dtype=torch.bool)
        if sinks:
            out[0] = True
        f = sae.encode(x)
        x_hat = sae(x)
        runs = {"clean": clean}
        runs["sae"] = _run(model, module(model), ids, partial(_replaced, x_hat, out))
        runs["abl"] = _run(model, module(model), ids, partial(_replaced, torch.zeros_like(x_hat), out))
        for name, logits in runs.items():
            log_p = logits[:-1].log_softmax(-1)
            ces[name].append(-log_p.gather(1, ids[0, 1:, None])[:, 0])
            if name != "clean":
                clean_p = clean[:-1].log_softmax(-1)
                kls[name].append((clean_p.exp() * (clean_p - log_p)).sum(-1))
        xs.append(x[~out])
        new.append(x_hat[~out])
        acts.append(f[~out])
        outs.append(out)
    x, x_hat, f = torch.cat(xs), torch.cat(new), torch.cat(acts)
    error = (x - x_hat).pow(2).sum(-1)
    legacy = []
    for at in range(0, len(xs), group):
        mine = torch.cat(xs[at : at + group])
        legacy.append((mine - mine.mean(0)).pow(2).sum(-1))
    ce = {name: float(torch.cat(each).mean()) for name, each in ces.items()}
    kl = {name: float(torch.cat(each).mean()) for name, each in kls.items()}
    fvu = float(error.sum() / (x - x.mean(0)).pow(2).sum())
    return {
        "ce_loss_without_sae": ce["clean"],
        "ce_loss_with_sae": ce["sae"],
        "ce_loss_with_ablation": ce["abl"],
        "ce_loss_score": (ce["abl"] - ce["sae"]) / (ce["abl"] - ce["clean"]),
        "kl_div_score": (kl["abl"] - kl["sae"]) / kl["abl"],
        "explained_variance": 1 - fvu,
        "explained_variance_legacy": float((1 - error / torch.cat(legacy)).mean()),
        "fvu": fvu,
        "mse": float(error.mean()),
        "cossim": float(torch.cosine_similarity(x, x_hat, dim=-1).mean()),
        "l2_ratio": float((x_hat.norm(dim=-1) / x.norm(dim=-1)).mean()),
        "relative_reconstruction_bias": float(x_hat.pow(2).sum(-1).mean() / (x * x_hat).sum(-1).mean()),
        "l0": float((f != 0).sum(-1).double().mean()),
        "l1": float(f.abs().sum(-1).mean()),
        "frac_alive": float((f > 0).any(0).double().mean()),
        "tokens": sum(map(len, texts)),
        "excluded": int(torch.cat(outs).sum()),
    }


def _kept(kept: list[Tensor], x: Tensor) -> Tensor:
    kept.append(x.clone())
    return x


def _replaced(new: Tensor, out: Tensor, x: Tensor) -> Tensor:
    return torch.where(out[:, None], x, new)


def _run(model: Any, module: torch.nn.Module, ids: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
    def hook(_: Any, __: Any, output: Any) -> Any:
        x = output if isinstance(output, Tensor) else output[0]
        new = edit(x[0])[None]
        return new if isinstance(output, Tensor) else (new, *output[1:])

    handle = module.register_forward_hook(hook)
    try:
        with torch.no_grad():
            logits: Tensor = model(ids).logits[0]
    finally:
        handle.remove()
    return logits
