"""The runner: what runs equals what is owed, once each, and never two on one subject."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from sae_actor.actor.effect_runner import EffectRunner
from sae_actor.actor.performer import failed
from sae_actor.domain.effects import DownloadEffect, Effect, ImportEffect, LoadModelEffect
from sae_actor.domain.reports import EffectDone, Report
from sae_actor.errors import NotReadyError, SAEError, TooLargeError
from tests.actor.world import turns

pytestmark = pytest.mark.anyio


def load(at: int) -> LoadModelEffect:
    return LoadModelEffect(request_position=at, model="m", revision="main", dtype="auto", device="auto")


def bring(at: int, sae_id: str = "a") -> ImportEffect:
    return ImportEffect(request_position=at, sae_id=sae_id, path="/saes/demo")


def download(at: int, sae_id: str = "a") -> DownloadEffect:
    return DownloadEffect(
        request_position=at, sae_id=sae_id, repository_id="r", revision="main", path=None, force=False
    )


class Stage:
    """Effects that wait until they are let go; a journal of all that happens."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.gates: dict[int, asyncio.Event] = {}
        self.refuse: Callable[[Report], SAEError | None] = lambda _: None
        self.slow_undo: asyncio.Event | None = None
        self.slow_report: asyncio.Event | None = None
        self.late = False
        """Reports come to nothing."""
        self.busy: dict[str, int] = {}
        self.runner = EffectRunner(self.perform, failed, self.undo, self.report)

    async def perform(self, effect: Effect) -> Report:
        at = effect.request_position
        subject = getattr(effect, "sae_id", "model")
        self.busy[subject] = self.busy.get(subject, 0) + 1
        assert self.busy[subject] == 1, "two on one subject"
        self.journal.append(f"begin {at}")
        try:
            await self.gates.setdefault(at, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.journal.append(f"cancel {at}")
            raise
        finally:
            self.busy[subject] -= 1
        return EffectDone(effect, at)

    async def undo(self, effect: Effect) -> None:
        if self.slow_undo is not None:
            await self.slow_undo.wait()
        self.journal.append(f"undo {effect.request_position}")

    async def report(self, report: Report) -> Sequence[object]:
        if self.slow_report is not None:
            await self.slow_report.wait()
        error = self.refuse(report)
        if error is not None:
            raise error
        self.journal.append(f"report {report.found if isinstance(report, EffectDone) else type(report).__name__}")
        return () if self.late else (report,)

    async def let(self, at: int) -> None:
        self.gates.setdefault(at, asyncio.Event()).set()
        await turns()


async def test_what_is_owed_runs_once_until_it_is_owed_no_more() -> None:
    stage = Stage()
    for _ in range(3):
        stage.runner.reconcile([load(1), bring(2)])
        await turns()
    await stage.let(1)
    stage.runner.reconcile([load(1), bring(2)])  # its report is still on the way
    await turns()
    stage.runner.reconcile([bring(2)])
    await stage.let(2)
    stage.runner.reconcile([])
    await turns()
    assert stage.journal == ["begin 1", "begin 2", "report 1", "report 2"]
    assert not stage.runner._running
    assert not stage.runner._done


async def test_not_again_while_its_report_waits_and_not_cancelled_then_either() -> None:
    stage = Stage()
    stage.slow_report = asyncio.Event()
    stage.runner.reconcile([download(1)])
    await stage.let(1)
    stage.runner.reconcile([download(1)])
    await turns()
    stage.runner.reconcile([])  # the turn that puts it on record: owed no more
    await turns()
    stage.runner.reconcile([])
    stage.slow_report.set()
    await turns()
    assert stage.journal == ["begin 1", "report 1"], "what was fetched is not thrown away"
    assert not stage.runner._running


async def test_what_was_done_in_vain_is_cleaned_up() -> None:
    """It was cancelled while its report was on the way: what was fetched belongs to no record."""
    stage = Stage()
    stage.late = True
    stage.runner.reconcile([download(1)])
    await stage.let(1)
    assert stage.journal == ["begin 1", "report 1", "undo 1"]
    assert not stage.runner._running


async def test_what_is_owed_no_more_is_cancelled_and_cleaned_up() -> None:
    stage = Stage()
    stage.runner.reconcile([load(1), download(2)])
    await turns()
    stage.runner.reconcile([load(1)])
    stage.runner.reconcile([load(1)])
    ended = asyncio.create_task(stage.runner.ended("download", 2))
    await turns()
    assert stage.journal == ["begin 1", "begin 2", "cancel 2", "undo 2"]
    assert ended.done()
    await stage.runner.ended("download", 99)
    await stage.runner.close()


async def test_what_never_began_is_cleaned_up_too() -> None:
    stage = Stage()
    stage.runner.reconcile([download(1)])
    stage.runner.reconcile([])
    await turns()
    assert stage.journal == ["undo 1"]
    assert not stage.runner._running


async def test_one_after_the_other_on_one_subject() -> None:
    stage = Stage()
    stage.runner.reconcile([bring(1), bring(2, "b"), load(3)])
    await turns()
    stage.slow_undo = asyncio.Event()
    stage.runner.reconcile([bring(4), bring(2, "b"), load(3)])
    await turns()
    assert stage.journal == ["begin 1", "begin 2", "begin 3", "cancel 1"]
    stage.runner.reconcile([bring(5), bring(2, "b"), load(3)])  # 4 never came to begin
    await turns()
    stage.slow_undo.set()
    await turns()
    assert stage.journal[4:] == ["undo 1", "undo 4", "begin 5"]
    await stage.runner.close()


async def test_close_cancels_without_undoing_what_is_still_owed() -> None:
    stage = Stage()
    stage.runner.reconcile([load(1), download(2)])
    await turns()
    stage.runner.reconcile([load(1), download(2), download(3, "b")])  # never begins
    await stage.runner.close()
    assert stage.journal == ["begin 1", "begin 2", "cancel 1", "cancel 2"]
    stage.runner.reconcile([load(4)])
    await turns()
    assert not stage.runner._running


async def test_close_lets_what_cleans_up_finish() -> None:
    stage = Stage()
    stage.slow_undo = asyncio.Event()
    stage.runner.reconcile([download(1)])
    await turns()
    stage.runner.reconcile([])
    await turns()
    closing = asyncio.create_task(stage.runner.close())
    await turns()
    assert not closing.done()
    stage.slow_undo.set()
    await closing
    assert stage.journal == ["begin 1", "cancel 1", "undo 1"]


async def test_a_report_that_is_refused_becomes_a_failure() -> None:
    stage = Stage()
    stage.refuse = lambda report: TooLargeError("too much") if isinstance(report, EffectDone) else None
    stage.runner.reconcile([download(1)])
    await stage.let(1)
    stage.runner.reconcile([download(1)])
    await turns()
    assert stage.journal == ["begin 1", "report EffectFailed"]


async def test_a_report_that_no_one_takes_is_not_worked_out_again(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.refuse = lambda _: NotReadyError("stopping")
    stage.runner.reconcile([download(1)])
    await stage.let(1)
    for _ in range(3):
        stage.runner.reconcile([download(1)])
        await turns()
    assert stage.journal == ["begin 1"]
    assert "not on record" in caplog.text


async def test_what_is_owed_again_while_it_ends_begins_again() -> None:
    stage = Stage()
    stage.slow_undo = asyncio.Event()
    stage.runner.reconcile([bring(1)])
    await turns()
    stage.runner.reconcile([])
    await turns()
    stage.runner.reconcile([bring(1)])
    await turns()
    assert stage.journal.count("begin 1") == 1
    stage.slow_undo.set()
    await turns()
    assert stage.journal.count("begin 1") == 2
    await stage.runner.close()
