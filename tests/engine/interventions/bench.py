"""One hook point on its own, with some SAEs on it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from sae_actor.domain.refs import ActiveSae
from sae_actor.engine.interventions.hook_points import Hook
from sae_actor.engine.interventions.hook_site import HookSite, MergedEdits
from sae_actor.engine.interventions.hooks import PreparedIntervention, StepRows, hooks_installed
from sae_actor.engine.interventions.sae_intervention import SaeIntervention
from sae_actor.sae import SAE
from sae_actor.sae.steering import Steering
from tests.engine.asking import POINT
from tests.engine.tiny import HIDDEN

PROMPT = 6


class Echo(nn.Module):
    """Gives back what it gets: the activation at the hook point is what the test puts in."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def part(sae: SAE, described: ActiveSae, prompt: int = PROMPT) -> SaeIntervention:
    return SaeIntervention(described, Steering.prepare(sae, described.steering), prompt)


def step(applied: PreparedIntervention, rows: int = PROMPT, first: int = 0) -> AbstractContextManager[None]:
    """A forward pass of this text alone."""
    return hooks_installed([StepRows(applied, first, first + rows, 0)], rows, MergedEdits())


class Bench:
    """One hook point on its own, with some SAEs on it."""

    def __init__(self, sae: SAE, *described: ActiveSae, prompt: int = PROMPT, window: int | None = 512) -> None:
        self.module = Echo()
        hook = Hook(self.module, "output", in_place=False, width=HIDDEN)
        self.site = HookSite(POINT, hook, [part(sae, each, prompt) for each in described])
        no_model: Any = None
        self.applied = PreparedIntervention([], no_model, prompt, window=window)
        self.applied.sites.append(self.site)
        self.site.window = window

    def run(self, x: Tensor, first: int = 0) -> Tensor:
        with step(self.applied, len(x), first):
            new: Tensor = self.module(x[None])
        assert not self.module._forward_hooks
        self.applied.settle(first)
        return new[0]


def activations(rows: int = PROMPT, seed: int = 0) -> Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(seed))
