"""Forward passes over texts: the logits after every token, and a hook that reads or writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...domain.refs import SINK_WINDOW, Exclusion, HookPoint
from ...errors import InternalError, ModelNotLoadedError
from ..decoding.attention import ScheduledTokens
from ..interventions.hook_points import Hook
from ..interventions.positions import TokenKinds, limit_of, measured, norms_of
from ..model.loading import LoadedModel

MOST_LOGITS = 2**28
"""Values in the logits of a pass, on a GPU. Those of one pass are kept, as float32, next to those of another."""
ON_GPU = 8192
"""Tokens of a pass there."""

Text = tuple[int, ...]
Write = Callable[[Tensor], Tensor]


def room(model: LoadedModel, prompt_tokens: int) -> int:
    """How many tokens a pass has. It depends on model and settings alone, so that a group is always cut the same."""
    if model.device.type != "cuda":
        return prompt_tokens
    return max(prompt_tokens, min(ON_GPU, MOST_LOGITS // max(1, model.tokenizer.vocabulary)))


def batches(texts: Sequence[Text], tokens: int, *, together: bool) -> Iterator[list[Text]]:
    """Texts that share a pass, in order."""
    batch: list[Text] = []
    for text in texts:
        if batch and (not together or sum(map(len, batch)) + len(text) > tokens):
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


@dataclass
class Pass:
    """The texts of one pass, and what hooks see and write in it. Rows follow the order of the texts."""

    model: LoadedModel
    texts: Sequence[Text]
    seen: dict[HookPoint, Tensor] = field(default_factory=dict)

    def run(self, read: Sequence[HookPoint] = (), write: tuple[HookPoint, Tensor, Tensor] | None = None) -> Tensor:
        """The logits after every token [n, vocabulary]. read: hook points whose activations [n, width] are put into
        `seen`. write: replace the activation at a hook point by `new` [n, width] where `touched` [n] is true."""
        runner = self.model.runner
        if runner is None:
            raise ModelNotLoadedError("the model was unloaded")
        kept = []
        try:
            pieces = []
            for text in self.texts:
                kept.append(runner.open(alone=False))
                pieces.append(ScheduledTokens(kept[-1], text, decoding=False, scored=True))
            arranged = runner.arrange(pieces)
            rows = _order(arranged.spans, self.model.device)
            missing = set(read) | ({write[0]} if write else set())
            with ExitStack() as handles:
                # Of two hooks at one side of a module the one that the model comes to first is installed first.
                points = sorted(missing, key=lambda point: not self.model.architecture.hook(point).comes_first)
                for point in points:
                    hook = self.model.architecture.hook(point)
                    new = write if write is not None and write[0] == point else None
                    handles.callback(hook.install(self._edit(point, hook, rows, new, missing)).remove)
                logits = runner.logits(arranged)
            if missing:
                raise InternalError(f"the activation at {next(iter(missing))} was not read")
            return logits[_order(arranged.logits, self.model.device)]
        finally:
            for each in kept:
                runner.release(each)

    def _edit(
        self,
        point: HookPoint,
        hook: Hook,
        rows: Tensor,
        write: tuple[HookPoint, Tensor, Tensor] | None,
        missing: set[HookPoint],
    ) -> Callable[[Tensor], Tensor | None]:
        def edit(x: Tensor) -> Tensor | None:
            flat = x.reshape(-1, x.shape[-1])
            if flat.shape != (len(rows), hook.width):
                return None
            missing.discard(point)
            if write is None:
                self.seen[point] = hook.seen(flat.clone())[rows]
                return None
            _, new, touched = write
            back = torch.empty_like(rows)
            back[rows] = torch.arange(len(rows), device=rows.device)
            new, touched = new[back], touched[back]
            if hook.gain is not None:
                return hook.gain.on(flat, hook.seen(flat), new, touched).reshape(x.shape)
            return torch.where(touched[:, None], new.to(flat.dtype), flat).reshape(x.shape)

        return edit


def _order(spans: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Rows of a step in the order of the texts."""
    return torch.tensor([row for start, stop in spans for row in range(start, stop)], device=device)


def excluded(x: Tensor, texts: Sequence[Text], exclude: Sequence[Exclusion], special: frozenset[int]) -> Tensor:
    """Which positions do not count, bool [n]; x [n, width] is what arrives where the SAE reads."""
    out = torch.zeros(len(x), dtype=torch.bool)
    norms = norms_of(x)
    at = 0
    for text in texts:
        here = slice(at, at + len(text))
        at = here.stop
        if "sink" in exclude:
            first = norms[here][: measured(len(text), SINK_WINDOW)]
            sinks = norms[here] > limit_of(first, len(text), SINK_WINDOW)
            out[here] |= sinks.cpu()
            out[here.start] = True
        if "special" in exclude:
            out[here] |= torch.from_numpy(TokenKinds(text, special, ()).special(0, len(text)))
    return out.to(x.device)
