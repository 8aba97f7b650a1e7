"""Requests that run in one batch, and an engine for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from sae_actor.domain.refs import Edit, HookPoint, Span, When
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.ports import Finished, GenerationRequest, Token, Watch
from tests.engine.asking import active, attach, load, no_progress, request

LOWER = HookPoint("resid_post", 0)


@asynccontextmanager
async def running(model: Path, *saes: tuple[int, HookPoint], sae: Path, **settings: Any) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(EngineSettings(threads=1, **settings))
    await engine.load_model(load(str(model)), no_progress)
    for at, point in saes:
        await engine.attach(attach(at, point=point), str(sae))
    yield engine
    await engine.close()


def ids(n: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(256, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


POINT = HookPoint("resid_post", 1)


WINDOW = 4
"""Prompts are read in pieces behind so many positions, of which the median norm is that tells sinks."""


def requests() -> list[GenerationRequest]:
    """Another method, position, feature, length and sampling each; several SAEs; a baseline; a reconstruction."""
    asked = [
        request(ids(5, 1), tokens=20),
        request(ids(17, 2), active(5, Edit(feature=3, strength=6.0, exclude=())), tokens=12),
        request(
            ids(3, 3),
            active(5, Edit(feature=1, strength=4.0, method="set", positions="generated", exclude=())),
            tokens=25,
        ),
        request(ids(30, 4), active(5, Edit(feature=2, strength=0.0, method="scale", exclude=("sink",))), tokens=9),
        request(
            ids(8, 5),
            active(5, Edit(feature=7, strength=0.1, method="cap", positions=Span(from_=2), exclude=())),
            tokens=18,
        ),
        request(
            ids(11, 6),
            active(5, Edit(feature=9, strength=0.0, method="project", exclude=())),
            tokens=16,
            temperature=0.8,
        ),
        request(
            ids(6, 7),
            active(6, Edit(feature=4, strength=3.0, exclude=()), point=LOWER),
            active(5, Edit(feature=5, strength=-5.0, method="set_projection", positions="response", exclude=())),
            tokens=14,
        ),
        request(ids(9, 8), active(5, mode="reconstruct"), tokens=10, temperature=1.0, top_p=0.9, seed=3),
        request(
            ids(7, 9),
            active(5, Edit(feature=8, strength=6.0, when=When(feature=2, above=0.05), exclude=())),
            tokens=15,
            logprobs=2,
        ),
        request(
            ids(7, 9),
            active(5, Edit(feature=3, strength=6.0, exclude=())),
            tokens=15,
            watched=(Watch(sae=active(5), top_k=3),),
        ),
        request(ids(12, 10), active(5, Edit(feature=3, strength=6.0, exclude=())), tokens=6, deterministic=True),
    ]
    return [replace(each, sink_window=WINDOW) for each in asked]


def plain(told: tuple[list[Token], Finished]) -> tuple[Any, ...]:
    """What does not depend on the last bits of a sum."""
    tokens, end = told
    return (
        end.token_ids,
        end.text,
        end.reason,
        end.error_detail,
        end.edited,
        end.excluded,
        replace(end.receipt, mean_relative_norm=0.0),
        [(token.text, token.offset) for token in tokens],
    )
