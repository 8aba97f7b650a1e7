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


def choose_all(logits: Tensor, asked: Sequence[Asked]) -> list[int | None]:
    """`choose` for several generations, from `logits` [rows, vocabulary]. A forced one takes its given token. None if
    the row's logits are not finite."""
    best = logits.argmax(dim=-1)  # [rows]; torch's argmax returns a NaN's place if there is one
    finite = torch.isfinite(logits.gather(1, best[:, None])[:, 0])
    greedy, good = best.tolist(), finite.tolist()
    tokens: list[int | None] = []
    for row, request, index, banned in asked:
        if not good[row]:
            tokens.append(None)
        elif request.forced is not None:
            tokens.append(request.forced[index])
        elif banned:
            tokens.append(choose(_without(logits[row], banned), request.sampling, index))
        elif request.sampling.temperature == 0:
            tokens.append(greedy[row])
        else:
            tokens.append(choose(logits[row], request.sampling, index))
    return tokens


def _without(logits: Tensor, banned: Sequence[int]) -> Tensor:
    """`logits` [vocabulary] with no chance for these tokens."""
    return logits.index_fill(0, torch.tensor(banned, device=logits.device), -torch.inf)


def choose(logits: Tensor, sampling: Sampling, index: int) -> int:
    """Id of the token `index` (from 0) of an answer. `logits` [vocabulary], any float type; read as float32.

    Temperature 0 is greedy. `top_p` keeps the smallest set of most probable tokens whose mass at the request's
    temperature reaches it, at least one. `InternalError` when the logits hold a NaN or only −inf.
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
    if sampling.top_p < 1:
        kept = nucleus(scaled, sampling.top_p)
    else:
        # Logarithms are dear: a token FAR below the best one can win with exceptional luck alone.
        floor = float(_gumbel(uniform[best]))
        lucky = uniform > math.exp(-math.exp(-(floor + FAR)))
        kept = ((scaled > -FAR) | lucky).nonzero().squeeze(1)
    return int(kept[(scaled[kept] + _gumbel(uniform[kept])).argmax()])


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
