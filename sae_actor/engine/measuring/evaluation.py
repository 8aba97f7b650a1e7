"""An evaluation's three passes over each text, and the sums that they come to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ...errors import InternalError
from ...ports import EvaluatedGroup, TextGroup
from ...sae import SAE
from ..model.loading import LoadedModel
from ..saes.residents import Resident
from .passes import Pass, Text, batches, excluded, room

Sums: TypeAlias = dict[str, float]

ROWS = 256
"""Rows whose log probabilities are in memory at a time, besides the logits."""


def evaluate(
    group: TextGroup, model: LoadedModel, resident: Resident, prompt_tokens: int
) -> Generator[None, None, EvaluatedGroup]:
    """One forward pass a piece."""
    sums: Sums = defaultdict(float)
    sae, point, written = resident.sae, resident.hook_point, resident.written_at
    firing = torch.zeros(2, sae.spec.d_sae, dtype=torch.int64, device=model.device)  # positions, texts
    targets: list[Tensor] = []
    errors: list[Tensor] = []
    together = model.runner is not None and model.runner.together
    for texts in batches(group.texts, room(model, prompt_tokens), together=together):
        run = Pass(model, texts)
        clean = run.run(read=tuple(dict.fromkeys((point, written))))
        x, y = run.seen[point], run.seen[written]  # [n, d_in], [n, d_out]
        out = excluded(x, texts, group.exclude, model.tokenizer.special_ids)
        new, on = _codes(sae, x, ~out, sums)  # [n, d_out], [n, d_sae]
        firing[0] += on.sum(0)
        for each in torch.split(on, [len(text) for text in texts]):
            firing[1] += each.any(0)
        del on
        if not bool(torch.isfinite(new).all()):
            raise InternalError(f"the SAE's output at {written} is not finite")
        target, error = y[~out].double(), (y.to(new.dtype) - new)[~out].double()
        _reconstruction(target, new[~out].double(), error, sums)
        targets.append(target.float().cpu())
        errors.append(error.pow(2).sum(-1).cpu())
        sums["tokens"] += len(x)
        sums["texts"] += len(texts)
        sums["excluded"] += int(out.sum())
        before, next_ids = _next(texts, model.device)
        sums["positions"] += len(before)
        log_p = _log_probabilities(clean)
        sums["ce_clean"] -= float(log_p[before, next_ids].double().sum())
        del clean
        yield
        for name, value in (("sae", new), ("ablation", torch.zeros_like(new))):
            logits = run.run(write=(written, value, ~out))
            ce, kl = _against(log_p, logits, before, next_ids)
            sums[f"ce_{name}"] += ce
            sums[f"kl_{name}"] += kl
            del logits
            yield
        del log_p, run
    _spread(torch.cat(targets), torch.cat(errors), sums)
    mean_sums = torch.cat(targets).double().sum(0)
    return EvaluatedGroup(
        sums={name: float(value) for name, value in sorted(sums.items())},
        mean_sums=tuple(mean_sums.tolist()),
        firing=tuple(firing[0].tolist()),
        texts_firing=tuple(firing[1].tolist()),
    )


def _codes(sae: SAE, x: Tensor, counted: Tensor, sums: Sums) -> tuple[Tensor, Tensor]:
    """What the SAE makes of x [n, d_in]: [n, d_out]; and which of its codes are on where it counts, [n, d_sae]."""
    z, rows = sae.read(x)
    acts = sae.encode_rows(z)  # [n, d_sae]
    mine = acts[counted]
    sums["l0"] += int((mine != 0).sum())
    sums["l1"] += float(mine.abs().sum(dtype=torch.float64))
    return sae.skip(sae.decode_rows(acts, rows), x), (acts > 0) & counted[:, None]


def _reconstruction(y: Tensor, new: Tensor, error: Tensor, sums: Sums) -> None:
    """y, its reconstruction and the difference, [n, d_out] float64."""
    norms, new_norms = y.norm(dim=-1), new.norm(dim=-1)
    inner = (y * new).sum(-1)
    tiny = torch.finfo(torch.float64).tiny
    sums["norms"] += float(norms.sum())
    sums["new_norms"] += float(new_norms.sum())
    sums["squares"] += float(norms.pow(2).sum())
    sums["new_squares"] += float(new_norms.pow(2).sum())
    sums["inner"] += float(inner.sum())
    sums["errors"] += float(error.pow(2).sum())
    sums["cossim"] += float((inner / (norms * new_norms).clamp_min(tiny)).sum())
    sums["l2_ratio"] += float((new_norms / norms.clamp_min(tiny)).sum())


def _spread(y: Tensor, errors: Tensor, sums: Sums) -> None:
    """What `explained_variance_legacy` is made of: the mean is that of the group."""
    if not len(y):
        return
    y = y.double()
    around = (y - y.mean(0)).pow(2).sum(-1)
    sums["explained_legacy"] += float((1 - errors / around.clamp_min(torch.finfo(torch.float64).tiny)).sum())


def _next(texts: Sequence[Text], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows with a next token, and that token's id."""
    rows: list[int] = []
    ids: list[int] = []
    at = 0
    for text in texts:
        rows += range(at, at + len(text) - 1)
        ids += text[1:]
        at += len(text)
    before = torch.tensor(rows, dtype=torch.long, device=device)
    return before, torch.tensor(ids, dtype=torch.long, device=device)


def _log_probabilities(logits: Tensor) -> Tensor:
    """Of each row, [n, vocabulary] float32; in place where the logits are."""
    logits = logits.float()
    for part in torch.split(logits, ROWS):
        part.sub_(part.logsumexp(-1, keepdim=True))
    return logits


def _against(log_p: Tensor, logits: Tensor, rows: Tensor, ids: Tensor) -> tuple[float, float]:
    """Over these rows, in nats: the sum of −log q of the next token, and that of KL(p ‖ q). log_p [n, vocabulary] as
    `_log_probabilities` gives it; q of the logits [n, vocabulary]."""
    ce = kl = 0.0
    for some, next_ids in zip(torch.split(rows, ROWS), torch.split(ids, ROWS), strict=True):
        log_q, own = logits[some].float().log_softmax(-1), log_p[some]
        ce -= float(log_q.gather(1, next_ids[:, None]).double().sum())
        kl += float((own - log_q).mul_(own.exp_()).sum(-1).double().sum())
    return ce, kl
