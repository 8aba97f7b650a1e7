"""What an SAE reads in texts: activations that are not 0, sparse."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor

from ...errors import InternalError
from ...ports import ReadGroup, TextGroup
from ..interventions.positions import norms_of
from ..model.loading import LoadedModel
from ..saes.residents import Resident
from .passes import Pass, batches, excluded, room


def read(
    group: TextGroup, model: LoadedModel, resident: Resident, prompt_tokens: int
) -> Generator[None, None, ReadGroup]:
    """One forward pass a piece."""
    sae, point = resident.sae, resident.hook_point
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    norms: list[Tensor] = []
    left_out: list[Tensor] = []
    at = 0
    together = model.runner is not None and model.runner.together
    for texts in batches(group.texts, room(model, prompt_tokens), together=together):
        run = Pass(model, texts)
        run.run(read=(point,))
        x = run.seen[point]
        out = excluded(x, texts, group.exclude, model.tokenizer.special_ids)
        acts = sae.encode_rows(sae.read(x)[0])  # [n, d_sae]
        if not bool(torch.isfinite(acts[~out]).all()):
            raise InternalError(f"the activations at {point} are not finite")
        acts[out] = 0
        rows, features = acts.nonzero(as_tuple=True)
        found.append((features.cpu(), rows.cpu() + at, acts[rows, features].float().cpu()))
        norms.append(norms_of(x).cpu())
        left_out.append(out.cpu())
        at += len(x)
        del run, x, acts
        yield
    on, where, strong = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    order = np.lexsort((where, on))
    return ReadGroup(
        features=on[order].astype("<u4").tobytes(),
        positions=where[order].astype("<u4").tobytes(),
        values=strong[order].astype("<f4").tobytes(),
        norms=torch.cat(norms).numpy().astype("<f4").tobytes(),
        excluded=torch.cat(left_out).numpy().astype("u1").tobytes(),
    )
