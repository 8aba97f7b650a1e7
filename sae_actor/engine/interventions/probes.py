"""Activations of an SAE at the positions that are run, before any edit at its hook point; or what arrives there."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from msgspec.structs import replace
from torch import Tensor

from ...domain.refs import SINK_WINDOW
from ...errors import FeatureOutOfRangeError, InternalError, OutOfMemoryError, SAEError
from ...ports import Activations, FeatureActivation, Watch
from ...sae import SAE
from ...sae.encoder import Encoder
from ..failures import explained
from .hook_points import Hook
from .positions import TokenKinds, limit_of, norms_of
from .readouts import Lens, Pool, joined_pools, raw_of

MOST_VALUES = 16 * 2**20
"""Most activations in memory at a time: long prompts are encoded in groups of rows."""

Row = tuple[FeatureActivation, ...]


class Probe:
    """One SAE that is read during one generation."""

    def __init__(
        self,
        watch: Watch,
        sae: SAE | None,
        hook: Hook,
        *,
        prompt: int,
        marks: TokenKinds,
        window: int | None = SINK_WINDOW,
        lens: Lens | None = None,
    ) -> None:
        """`prompt` is the number of prompt tokens, `window` as of `GenerationRequest.sink_window`; lens: for
        `Watch.lens`.
        Without an SAE the activation itself is read. `FeatureOutOfRangeError` for a feature that the SAE lacks."""
        d_sae = 0 if sae is None else sae.spec.d_sae
        for feature in watch.features or ():
            if feature >= d_sae:
                raise FeatureOutOfRangeError(
                    f"feature {feature} is not below d_sae {d_sae}", feature=feature, d_sae=d_sae
                )
        self.hook = hook
        self.sae = sae
        self.watch = watch
        self.passing = watch.every_seconds is not None
        """Read at a limited rate; it never ends a generation."""
        self.behind_others = False
        """The generation may write at an earlier hook point: the activation here is not the model's alone."""
        self.rows = slice(0, 0)
        """Its rows in the step."""
        self.pool: Pool | None = None
        """While its rows are encoded."""
        self.reading: Activations | None = None
        """Of the newest step; None if it was not read."""
        self.failure: SAEError | None = None
        self.at_fault: int | None = None
        """attach_position, if the model's activation was finite."""
        self.best = 0 if watch.top_k is None or watch.features is not None else watch.top_k
        """This many of all features."""
        self.features = watch.features or (() if self.best or watch.pooling else tuple(range(d_sae)))
        """Otherwise: these."""
        self.lens = lens
        self.limit = math.inf
        """Norm above which a position is a sink; measured with the prompt."""
        self._prompt, self._window, self._marks = prompt, window, marks
        self._begun = slice(0, 0)
        """The rows that the limit is measured at, in the step that has them."""
        self._first = 0
        self._next = 0.0
        self._encoders: dict[tuple[int, ...], Encoder] = {}

    def again(self) -> Probe:
        """Another one of the same."""
        return Probe(
            self.watch, self.sae, self.hook, prompt=self._prompt, marks=self._marks, window=self._window, lens=self.lens
        )

    def encoder(self, features: tuple[int, ...]) -> Encoder:
        """Of these features alone."""
        found = self._encoders.get(features)
        if found is None:
            assert self.sae is not None
            found = self.sae.encoder.select(torch.tensor(features, dtype=torch.long, device=self.sae.device))
            self._encoders = {features: found}  # those of the other generations in a step change rarely
        return found

    @property
    def attach_position(self) -> int:
        return self.watch.sae.attach_position

    @property
    def leaves_out_sinks(self) -> bool:
        return "sink" in self.watch.exclude

    def begin(self, first: int, stop: int, row: int) -> bool:
        """The next step runs positions `first` … `stop` − 1 as the rows from `row` on; whether it is looked at."""
        self.reading = self.failure = self.at_fault = None
        self._first, self.rows = first, slice(row, row + stop - first)
        self._begun = self.rows if first == 0 else slice(0, 0)
        if self.watch.every_seconds is None:
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self.watch.every_seconds
        self._first, self.rows = stop - 1, slice(self.rows.stop - 1, self.rows.stop)
        return True

    def measure(self, x: Tensor) -> None:
        """From the rows x of a step, once: what a sink's norm is above."""
        if self._begun.stop > self._begun.start and (self._window is not None or self.leaves_out_sinks):
            self.limit = float(limit_of(norms_of(x[self._begun]), self._prompt, self._window))

    def tell(self, rows: Sequence[Row], norms: Sequence[float]) -> None:
        """What was read at each position, and the norm of what arrived there."""
        sinks, left = self._sorted(norms)
        if self.watch.top_k is not None:
            rows = [() if out else row for row, out in zip(rows, left, strict=True)]
        self.reading = Activations(
            sae_id=self.watch.sae.sae_id, first=self._first, rows=tuple(rows), sinks=sinks, excluded=left
        )

    def tell_place(self, x: Tensor) -> None:
        """What is to be told of its rows [n, width] of what arrived."""
        norms = norms_of(x).tolist()
        sinks, left = self._sorted(norms)
        bare = Activations(sae_id="", first=self._first, rows=(), sinks=sinks, excluded=left)
        if self.watch.raw:
            self.reading = replace(bare, raw=raw_of(x))
        elif self.watch.lens is not None:
            assert self.lens is not None
            self.reading = replace(bare, lens=self.lens.tokens(x, self.watch.lens))
        else:
            counted = torch.tensor([not out for out in left], device=x.device)
            mean = x.double()[counted].sum(0) / max(1, len(left) - sum(left))
            self.reading = replace(bare, mean=tuple(mean.tolist()), norms=tuple(norms))

    def begin_pool(self, norms: Sequence[float], device: torch.device) -> Tensor:
        """Which of the rows, with these norms, are counted; they are given to `pool` in pieces."""
        assert self.sae is not None
        assert self.watch.pooling is not None
        sinks, left = self._sorted(norms)
        self.pool = Pool(self.watch.pooling, self.sae.spec.d_sae, device)
        self.reading = Activations(sae_id=self.watch.sae.sae_id, first=self._first, rows=(), sinks=sinks, excluded=left)
        return torch.tensor([not out for out in left], device=device)

    def end_pool(self) -> None:
        assert self.reading is not None
        assert self.pool is not None
        self.reading, self.pool = replace(self.reading, pooled=self.pool.result()), None

    def _sorted(self, norms: Sequence[float]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        """Which of the positions, with these norms, are sinks, and which are left out."""
        positions = range(self._first, self._first + len(norms))
        sinks = tuple(at == 0 or norm > self.limit for at, norm in zip(positions, norms, strict=True))
        left = [each and self.leaves_out_sinks for each in sinks]
        for kind, marked in (("special", self._marks.special), ("template", self._marks.template)):
            if kind in self.watch.exclude:
                flags = marked(positions.start, positions.stop).tolist()
                left = [one or other for one, other in zip(left, flags, strict=True)]
        return sinks, tuple(left)

    def refuse(self, *, finite: bool, sound: bool = True) -> bool:
        """Fail, and say so, if the activations that arrived are not finite, or those of the SAE."""
        where = self.watch.sae.hook_point
        if not finite:
            self.fail(InternalError(f"the model's activation at {where} is not finite"), at_fault=False)
        elif not sound:
            # If the generation's own edits caused it, the SAE is not at fault.
            self.fail(InternalError(f"the activations at {where} are not finite"), at_fault=not self.behind_others)
        return not (finite and sound)

    def fail(self, failure: SAEError, *, at_fault: bool) -> None:
        if not self.passing:
            self.failure = failure
            self.at_fault = self.attach_position if at_fault else None


class ProbeHook:
    """All that is read at one hook point in one step."""

    def __init__(self, rows: int) -> None:
        self.probes: list[Probe] = []
        self._count = rows
        self._x: Tensor | None = None

    def see(self, x: Tensor) -> None:
        """What the hook calls; nothing is computed inside of the model's forward pass. A block may go on to add to the
        same tensor, so it is copied."""
        self._x = x.clone()

    def take(self) -> None:
        """After the step: what each probe reads, or why it cannot."""
        x, self._x = self._x, None
        of_sae: dict[int, list[Probe]] = {}
        for probe in self.probes:
            if x is None or x.numel() != self._count * probe.hook.width:
                missing = f"the activation at {probe.watch.sae.hook_point} was not read"
                probe.fail(InternalError(missing), at_fault=False)
            else:
                of_sae.setdefault(id(probe.sae), []).append(probe)
        if x is not None:
            rows = self.probes[0].hook.seen(x.reshape(self._count, -1))  # all are at one hook point
            for probes in of_sae.values():
                _attempt(rows, probes)


def joined(before: Activations, reading: Activations, watch: Watch) -> Activations:
    """The readings of two successive prefill chunks."""
    one, other = before.excluded.count(False), reading.excluded.count(False)
    pairs = zip(before.mean, reading.mean, strict=True)
    pooled = None
    if watch.pooling is not None:
        assert before.pooled is not None
        assert reading.pooled is not None
        pooled = joined_pools(watch.pooling, before.pooled, reading.pooled, (one, other))
    return replace(
        before,
        rows=before.rows + reading.rows,
        sinks=before.sinks + reading.sinks,
        excluded=before.excluded + reading.excluded,
        mean=tuple((one * a + other * b) / max(1, one + other) for a, b in pairs),
        norms=before.norms + reading.norms,
        pooled=pooled,
        raw=before.raw + reading.raw,
        lens=before.lens + reading.lens,
    )


def _attempt(x: Tensor, probes: Sequence[Probe]) -> None:
    """Read together; each on its own if that fails."""
    try:
        _read(x, probes)
        return
    except Exception as error:  # an error of torch ends the generations at fault, not the thread
        failure = explained(error, "computing the SAE's activations")
    if len(probes) == 1:
        probes[0].fail(failure, at_fault=not isinstance(failure, OutOfMemoryError))
        return
    for probe in probes:
        _attempt(x, [probe])


def _read(x: Tensor, probes: Sequence[Probe]) -> None:
    """Encode the rows of all, once, and give each its own."""
    for probe in probes:
        probe.measure(x)
    sae = probes[0].sae
    if sae is None:
        for probe in probes:
            if not probe.refuse(finite=bool(torch.isfinite(own := x[probe.rows]).all())):
                probe.tell_place(own)
        return
    if pooled := [probe for probe in probes if probe.watch.pooling is not None]:
        _pool(x, pooled, sae)
    if not (probes := [probe for probe in probes if probe.watch.pooling is None]):
        return
    rows = x[probes[0].rows] if len(probes) == 1 else torch.cat([x[probe.rows] for probe in probes])  # [n, d_in]
    most = max((probe.best for probe in probes), default=0)
    asked = sorted({feature for probe in probes for feature in probe.features})
    encoder = probes[0].encoder(tuple(asked)) if not most and sae.independent else None
    finite: list[bool] = []
    sound: list[bool] = []
    norms: list[float] = []
    best: list[Row] = []
    some: list[list[float]] = []
    for part in torch.split(rows, max(1, MOST_VALUES // sae.spec.d_sae)):
        z, _ = sae.read(part)
        acts = sae.encode_rows(z) if encoder is None else encoder(z)  # [n, d_sae] or [n, asked]
        finite += torch.isfinite(part).all(dim=-1).tolist()
        sound += torch.isfinite(acts).all(dim=-1).tolist()
        norms += norms_of(part).tolist()
        if most:
            best += _largest(acts, most)
        if asked:
            some += (acts[:, asked] if encoder is None else acts).tolist()
    place = {feature: at for at, feature in enumerate(asked)}
    at = 0
    for probe in probes:
        mine = range(at, at + probe.rows.stop - probe.rows.start)
        at = mine.stop
        if probe.refuse(finite=all(finite[row] for row in mine), sound=all(sound[row] for row in mine)):
            continue
        if probe.best:
            probe.tell([best[row][: probe.best] for row in mine], norms[mine.start : mine.stop])
        else:
            reading = [_of(probe, [some[row][place[feature]] for feature in probe.features]) for row in mine]
            probe.tell(reading, norms[mine.start : mine.stop])


def _pool(x: Tensor, probes: Sequence[Probe], sae: SAE) -> None:
    """Encode the rows of all, once, and pool each one's own. Rows that are not finite spoil their probe alone."""
    rows = torch.cat([x[probe.rows] for probe in probes])  # [n, d_in]
    norms = norms_of(rows).tolist()
    starts = [0, *accumulate(probe.rows.stop - probe.rows.start for probe in probes)]
    spans = list(pairwise(starts))
    counted = torch.cat(
        [probe.begin_pool(norms[start:stop], x.device) for probe, (start, stop) in zip(probes, spans, strict=True)]
    )
    finite, sound = [True] * len(probes), [True] * len(probes)
    at = 0
    for part in torch.split(rows, max(1, MOST_VALUES // sae.spec.d_sae)):
        z, _ = sae.read(part)
        acts = sae.encode_rows(z)  # [m, d_sae]
        for place, (probe, (start, stop)) in enumerate(zip(probes, spans, strict=True)):
            mine = slice(max(start, at) - at, max(min(stop, at + len(part)), at) - at)
            if mine.start >= mine.stop:
                continue
            assert probe.pool is not None
            finite[place] &= bool(torch.isfinite(part[mine]).all())
            sound[place] &= bool(torch.isfinite(acts[mine]).all())
            probe.pool.add(acts[mine][counted[at + mine.start : at + mine.stop]])
        at += len(part)
    for place, probe in enumerate(probes):
        probe.end_pool()
        probe.refuse(finite=finite[place], sound=sound[place])


def _largest(acts: Tensor, most: int) -> list[Row]:
    """The largest of each row by magnitude, those that are not 0."""
    features = acts.abs().topk(min(most, acts.shape[1]), dim=-1).indices  # [n, most], descending: zeros at the end
    values = acts.gather(1, features)
    pairs = zip(features.tolist(), values.tolist(), strict=True)
    return [tuple(FeatureActivation(f, a) for f, a in zip(*row, strict=True) if a) for row in pairs]


def _of(probe: Probe, activations: list[float]) -> Row:
    """The requested features: all in their order, or the largest."""
    row = [FeatureActivation(f, a) for f, a in zip(probe.features, activations, strict=True)]
    if probe.watch.top_k is None:
        return tuple(row)
    largest = sorted((each for each in row if each.activation), key=lambda each: -abs(each.activation))
    return tuple(largest[: probe.watch.top_k])
