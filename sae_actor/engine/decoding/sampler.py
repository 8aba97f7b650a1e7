"""The next token from the logits, with noise that depends only on (seed, token index).

Gumbel-max (Gumbel 1954): argmaxᵢ(lᵢ/T + gᵢ), gᵢ = −log(−log uᵢ), uᵢ uniform, is a draw from softmax(l/T).
The uᵢ come from torch's CPU generator (MT19937, the same on every platform) seeded with the first 8 bytes of
sha256("seed:index"), drawn as float64 for the whole vocabulary. So a token does not depend on what else runs,
on the device, or on how many tokens were drawn before it in other requests.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...domain.events import Sampling
from ...errors import InternalError
from ...ports import GenerationRequest
from .grammars import GrammarState, Masks
from .penalties import Penalties, penalise

FAR = 8.0
FEW = 1024
"""Tokens among which a nucleus is looked for first."""


class Asked(NamedTuple):
    """A generation whose next token is chosen."""

    row: int
    """Of the logits."""
    request: GenerationRequest
    at: int
    """Index of the token in the answer, from 0."""
    banned: Sequence[int] = ()
    """Tokens that may not be chosen."""
    penalties: Penalties | None = None
    grammar: GrammarState | None = None
    """None if any token may come."""


def choose_all(logits: Tensor, asked: Sequence[Asked], masks: Masks | None = None) -> list[int | None]:
    """`choose` for several generations, from `logits` [rows, vocabulary]. A forced one takes its given token. None if
    the row's logits are not finite. masks: needed if one has a grammar."""
    best = logits.argmax(dim=-1)  # [rows]; torch's argmax returns a NaN's place if there is one
    tops = logits.gather(1, best[:, None])[:, 0]
    own = [each for each in asked if each.request.forced is None]
    rows, processed = processed_logits(logits, own, masks)
    if rows:
        again = processed.argmax(dim=-1)
        best = torch.cat([best, again])
        tops = torch.cat([tops.float(), processed.gather(1, again[:, None])[:, 0]])
    greedy, good = best.tolist(), torch.isfinite(tops).tolist()
    tokens: list[int | None] = []
    for each in asked:
        row, request, index = each[:3]
        place = rows.get(row)
        at = row if place is None else len(logits) + place
        if not (good[row] and good[at]):
            tokens.append(None)
        elif request.forced is not None:
            tokens.append(request.forced[index])
        elif request.sampling.temperature == 0:
            tokens.append(greedy[at])
        else:
            tokens.append(choose(logits[row] if place is None else processed[place], request.sampling, index))
    return tokens


def processed_logits(
    logits: Tensor, asked: Sequence[Asked], masks: Masks | None = None
) -> tuple[dict[int, int], Tensor]:
    """Logits after all that comes before temperature, in float32, of the generations that have anything of it: row of
    `logits` → row of the result. In this order: penalties and bias, banned tokens, grammar; where a grammar allows
    banned tokens alone, they may come."""
    free = [each for each in asked if each.grammar is None and (each.penalties is not None or each.banned)]
    bound = [each for each in asked if each.grammar is not None]
    changed = [*free, *bound]
    rows = {each.row: place for place, each in enumerate(changed)}
    if not changed:
        return rows, logits[:0]
    every = list(rows) == list(range(len(logits)))
    found = logits.float().clone() if every else logits[list(rows)].float()
    tables = [(rows[each.row], each.penalties) for each in changed if each.penalties is not None]
    if tables:
        penalise(found, tables)
    before = [(rows[each.row], each, found[rows[each.row]].clone()) for each in bound if each.banned]
    if any(each.banned for each in changed):
        _rule_out(found, [(rows[each.row], each.banned) for each in changed])
    if bound:
        if masks is None:
            raise InternalError("a text with a grammar needs masks")
        masks.apply(found[len(free) :], [each.grammar for each in bound if each.grammar is not None])
        _yield_to_grammars(found, before, masks)
    return rows, found


def _yield_to_grammars(found: Tensor, before: Sequence[tuple[int, Asked, Tensor]], masks: Masks) -> None:
    """Lift the ban where nothing else is left. before: rows with a ban, as they were without it."""
    if not before:
        return
    left = torch.isneginf(found[[place for place, _, _ in before]].amax(dim=-1)).tolist()
    for stuck, (place, each, row) in zip(left, before, strict=True):
        if stuck and each.grammar is not None:
            found[place] = row
            masks.apply(found[place : place + 1], [each.grammar])


def choose(logits: Tensor, sampling: Sampling, index: int) -> int:
    """Id of the token `index` (from 0) of an answer. `logits` [vocabulary], any float type; read as float32.

    Temperature 0 is greedy. At the request's temperature `top_k` keeps so many of the most probable tokens, `top_p` of
    these the smallest set of most probable ones whose mass reaches it, at least one, and `min_p` of these what is at
    least that share as probable as the best. `InternalError` when the logits hold a NaN or only −inf.
    """
    logits = logits.float()
    best = int(logits.argmax())  # torch's argmax returns a NaN's place if there is one
    top = logits[best]
    if not bool(torch.isfinite(top)):
        raise InternalError("the model's logits are not finite")
    if sampling.temperature == 0:
        return best
    # float64 and the shift keep a tiny temperature from overflowing: the best token is at 0, all others below.
    scaled = (logits - top).double().cpu() / sampling.temperature
    uniform = noise(sampling.seed, index, len(logits))
    if sampling.top_p < 1 or sampling.top_k or sampling.min_p:
        kept = candidates(scaled, sampling)
    else:
        # Logarithms are dear: a token FAR below the best one can win with exceptional luck alone.
        floor = float(_gumbel(uniform[best]))
        lucky = uniform > math.exp(-math.exp(-(floor + FAR)))
        kept = ((scaled > -FAR) | lucky).nonzero().squeeze(1)
    return int(kept[(scaled[kept] + _gumbel(uniform[kept])).argmax()])


def candidates(scaled: Tensor, sampling: Sampling) -> Tensor:
    """Indexes of the tokens that `top_k`, `top_p` and `min_p` leave, at least one.

    `scaled` [vocabulary] float64, its softmax the probabilities and its largest value 0.
    """
    kept: Tensor | None = None
    if 0 < sampling.top_k < len(scaled):
        least = scaled.topk(sampling.top_k).values[-1]
        kept = (scaled >= least).nonzero().squeeze(1)
    if sampling.top_p < 1:
        kept = nucleus(scaled, sampling.top_p) if kept is None else kept[nucleus(scaled[kept], sampling.top_p)]
    if sampling.min_p:
        enough = math.log(sampling.min_p)
        if kept is None:
            return (scaled >= enough).nonzero().squeeze(1)
        kept = kept[scaled[kept] >= enough]
    return torch.arange(len(scaled)) if kept is None else kept


def noise(seed: int, index: int, size: int) -> Tensor:
    """[size] float64 on the CPU, uniform in [0, 1): what token `index` is drawn with under `seed`."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(size, generator=generator, dtype=torch.float64)


def gumbel(seed: int, index: int, size: int) -> Tensor:
    """[size] float64 on the CPU: the noise of token `index` under `seed`."""
    return _gumbel(noise(seed, index, size))


def _gumbel(uniform: Tensor) -> Tensor:
    return -(-uniform.log()).log()


def nucleus(scaled: Tensor, top_p: float) -> Tensor:
    """Indexes of the smallest set of most probable tokens whose mass reaches `top_p`, at least one, in their order.

    `scaled` [vocabulary] float64, its softmax the probabilities.
    """
    total = scaled.logsumexp(dim=0)
    few = min(FEW, len(scaled))
    for most in (few, len(scaled)):  # sorting everything takes ten times as long
        values, order = scaled.topk(most)
        mass = (values - total).exp()
        before = mass.cumsum(dim=0) - mass
        inside = before < top_p
        inside[0] = True
        if most == len(scaled) or not bool(inside[-1]):
            return order[inside]
    raise AssertionError


def _rule_out(logits: Tensor, tokens: Sequence[tuple[int, Sequence[int]]]) -> None:
    """Leave these tokens of the rows of `logits` [rows, vocabulary], contiguous, no chance."""
    at = [row * logits.shape[1] + token for row, each in tokens for token in each]
    logits.view(-1).index_fill_(0, torch.tensor(at, device=logits.device), -torch.inf)
