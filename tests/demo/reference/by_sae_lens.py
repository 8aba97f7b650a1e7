"""Makes `sae_lens.json`: what SAELens' own evaluation says of the bundled SAE, on the contexts of `../texts`.

    pip install torch sae-lens
    python tests/demo/reference/by_sae_lens.py MODEL_FOLDER [--first N …]

It needs nothing of the project. MODEL_FOLDER is the demo's model (`sae_actor.demo.model.prepare_model`). For each N it
evaluates the first N contexts twice, in batches of 64 contexts as the service's groups are: with every position, and
with each context begun by BOS, which is left alone (SAELens' `exclude_special_tokens`).

Where the definitions differ from the service's, the number is worked out from SAELens' values per token:
* SAELens takes KL over every position; here, as for CE, over those with a next token.
* of what is left alone SAELens leaves out the loss too, and zeroes it in the ablated pass; here every position with a
  next token counts, and the ablated pass is compared only where nothing is left alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
CONTEXTS = HERE.parent / "texts" / "contexts.ndjson"
SAE = HERE.parents[2] / "sae_actor" / "demo" / "smollm2-135m-layer15"
HOOK = "model.layers.15"
GROUP, FEW = 64, 4
"""Contexts of a batch where variance is taken, and where whole logits are in memory."""
BOS = 1


class Store:
    """The part of SAELens' ActivationsStore that its evaluation uses: batches of tokens, in order."""

    def __init__(self, tokens: torch.Tensor, size: int) -> None:
        self._batches = iter(torch.split(tokens, size))

    def get_batch_tokens(self, _: int) -> torch.Tensor:
        return next(self._batches)


def contexts(tokenizer: Any, first: int, begin: Sequence[int]) -> torch.Tensor:
    lines = CONTEXTS.read_text("utf-8").splitlines()[:first]
    return torch.tensor(
        [[*begin, *tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]] for line in lines]
    )


def losses(sae: Any, model: Any, tokens: torch.Tensor, ignored: list[int]) -> Iterator[dict[str, torch.Tensor]]:
    """Sums per batch, over positions with a next token."""
    from sae_lens.evals import get_recons_loss
    from sae_lens.training.activation_scaler import ActivationScaler

    for number, batch in enumerate(torch.split(tokens, FEW)):
        print(f"{number * FEW} of {len(tokens)} contexts", file=sys.stderr)
        found = get_recons_loss(
            sae, model, ActivationScaler(), batch, compute_kl=True, compute_ce_loss=True, ignore_tokens=ignored
        )
        yield {name: value[:, : batch.shape[1] - 1].double().sum() for name, value in found.items()}


def evaluated(sae: Any, model: Any, tokens: torch.Tensor, ignored: list[int]) -> dict[str, Any]:
    from sae_lens.evals import get_sparsity_and_variance_metrics
    from sae_lens.training.activation_scaler import ActivationScaler

    found, features = get_sparsity_and_variance_metrics(
        sae, model, Store(tokens, GROUP), ActivationScaler(), n_batches=-(-len(tokens) // GROUP),
        compute_l2_norms=True, compute_sparsity_metrics=True, compute_variance_metrics=True,
        compute_featurewise_density_statistics=True, eval_batch_size_prompts=GROUP, model_kwargs={},
        ignore_tokens=ignored,
    )  # fmt: skip
    found["frac_alive"] = sum(each > 0 for each in features["feature_density"]) / len(features["feature_density"])
    found["densest"] = max(features["feature_density"])
    positions = len(tokens) * (tokens.shape[1] - 1)
    sums = list(losses(sae, model, tokens, ignored))
    mean = {name: float(sum(each[name] for each in sums)) / positions for name in sums[0]}
    found |= {name: mean[name] for name in ("ce_loss_without_sae", "ce_loss_with_sae", "kl_div_with_sae")}
    if not ignored:
        found |= {name: mean[name] for name in ("ce_loss_with_ablation", "kl_div_with_ablation")}
        lost = mean["ce_loss_with_ablation"] - mean["ce_loss_without_sae"]
        found["ce_loss_score"] = (mean["ce_loss_with_ablation"] - mean["ce_loss_with_sae"]) / lost
        found["kl_div_score"] = 1 - mean["kl_div_with_sae"] / mean["kl_div_with_ablation"]
    return {"tokens": tokens.numel(), "positions": positions, **found}


def main() -> None:
    import sae_lens
    from sae_lens.load_model import load_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--first", type=int, nargs="+", default=[6, 157])
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    model: Any = load_model("AutoModelForCausalLM", given.model, "cpu", {"dtype": torch.float32}, hook_names=[HOOK])
    sae = sae_lens.SAE.load_from_disk(str(SAE), device="cpu", dtype="float32")
    sae.cfg.metadata.hook_name = HOOK
    target = HERE / "sae_lens.json"
    kept = json.loads(target.read_text("utf-8")) if target.exists() else {}
    for first in given.first:
        every, begun = (contexts(model.tokenizer, first, begin) for begin in ((), (BOS,)))
        kept[str(first)] = {
            "every position": evaluated(sae, model, every, []),
            "begun by BOS, left alone": evaluated(sae, model, begun, [BOS]),
        }
        kept["made by"] = {name: version(name) for name in ("sae-lens", "transformers", "torch")}
        target.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
