"""Whether a start finds the log of the last one, or a copy of it."""

from __future__ import annotations

from typing import Literal

import msgspec
import pytest
from msgspec.structs import replace

from sae_actor.domain import events as ev
from sae_actor.domain.messages import LogOrigin, Start, Stop, TakenOver
from tests.domain.dsl import Step, Story, attached_steered, given

LOG, BRANCH, HASH = "5e" * 16, "7f" * 16, "ab" * 32
FILE = ev.LogFile(device="259:2", inode="1234567", file_system="6c1e6f0b2a3d4e5f")
FOUND = TakenOver(log_id=LOG, head_hash=HASH, log_file=FILE, branch_id=BRANCH)
STARTED = ev.ActorStarted(version="1", log_file=FILE)
RECORDED = b"""{"version":"1","max_attachments":1,"drain_seconds":3.0,\
"log_file":{"device":"259:2","inode":"1234567","file_system":"6c1e6f0b2a3d4e5f"}}"""


def at(position: int) -> ev.LogHead:
    return ev.LogHead(position=position, hash=HASH)


def starting(before: Story, found: TakenOver | None) -> Story:
    return before.when(Start(version="2", log=found))


def forked(
    head: int, reason: Literal["copied", "restored", "imported"] = "copied", parent: str = LOG, branch: str = BRANCH
) -> ev.LogForked:
    return ev.LogForked(reason=reason, branch_id=branch, parent_id=parent, parent_head=at(head))


def test_the_file_on_record() -> None:
    assert msgspec.json.encode(STARTED) == RECORDED
    assert msgspec.json.decode(RECORDED, type=ev.ActorStarted) == STARTED


def test_the_same_file_is_no_fork() -> None:
    story = starting(given(STARTED, ev.ActorStopped()), FOUND)
    story.then(ev.ActorStarted(version="2", log_file=FILE))
    assert (story.state.branch_id, story.state.log_file) == (None, FILE)


@pytest.mark.parametrize(
    ("changes", "is_fork"),
    [
        ({}, False),
        ({"device": "8:1"}, False),  # a reboot numbered the disks anew, the file system is the same
        ({"file_system": "1"}, False),
        ({"file_system": None}, False),
        ({"inode": "7"}, True),  # copied beside it
        ({"device": "8:1", "file_system": "1"}, True),  # onto a fresh disk, where inodes begin at the same number
        ({"device": "8:1", "file_system": None}, True),
        ({"inode": "7", "device": "8:1"}, True),
    ],
)
def test_which_file_is_another(changes: dict[str, str | None], is_fork: bool) -> None:
    found = replace(FOUND, log_file=replace(FILE, **changes))
    expected = ev.ActorStarted(version="2", log_file=found.log_file)
    story = starting(given(STARTED, ev.ActorStopped()), found)
    story.then(*([forked(2)] if is_fork else []), expected)
    assert story.state.branch_id == (BRANCH if is_fork else None)
    # It is found there again.
    starting(story.when(Stop()), replace(found, branch_id="1" * 32)).then(expected)


def test_file_systems_without_an_id_have_nothing_in_common() -> None:
    bare = replace(FILE, file_system=None)
    found = replace(FOUND, log_file=replace(bare, device="8:1"))
    story = starting(given(replace(STARTED, log_file=bare), ev.ActorStopped()), found)
    story.then(forked(2), ev.ActorStarted(version="2", log_file=found.log_file))


@pytest.mark.parametrize("last", [ev.ActorStarted(version="1"), None], ids=["older version", "first start"])
def test_nothing_on_record_is_no_fork(last: ev.ActorStarted | None) -> None:
    before: tuple[Step, ...] = () if last is None else (last, ev.ActorStopped())
    story = starting(given(*before), FOUND)
    story.then(ev.ActorStarted(version="2", log_file=FILE))
    assert story.state.log_file == FILE


def test_a_log_without_files_is_no_fork() -> None:
    story = starting(given(STARTED, ev.ActorStopped()), None)
    story.then(ev.ActorStarted(version="2"))
    assert story.state.log_file is None


@pytest.mark.parametrize("reason", ["restored", "imported"])
def test_a_log_that_was_brought_forks_once(reason: Literal["restored", "imported"]) -> None:
    """Even if an older version wrote it, which recorded no file."""
    found = replace(FOUND, origin=LogOrigin(reason=reason, log_id=LOG, head=at(2)))
    started = ev.ActorStarted(version="2", log_file=FILE)
    story = starting(given(ev.ActorStarted(version="1"), ev.ActorStopped()), found)
    story.then(forked(2, reason), started)
    # The note was not removed; the fork is on record.
    story = starting(story.when(Stop()), replace(found, branch_id="1" * 32))
    story.then(started)
    assert (story.state.branch_id, story.state.forked_at) == (BRANCH, 3)


def test_the_parent_s_head_is_that_of_the_restore() -> None:
    """A payload was erased between a restore and the first start: the parent does not have that event."""
    redacted = ev.PayloadRedacted(redacted_position=1, why="x")
    found = replace(FOUND, head_hash="0" * 64, origin=LogOrigin(reason="restored", log_id=LOG, head=at(2)))
    story = starting(given(STARTED, ev.ActorStopped(), redacted), found)
    story.then(forked(2, "restored"), ev.ActorStarted(version="2", log_file=FILE))
    assert story.state.forked_at == 4


def test_a_note_about_another_log_says_nothing() -> None:
    found = replace(FOUND, origin=LogOrigin(reason="restored", log_id="0" * 32, head=at(2)))
    starting(given(STARTED, ev.ActorStopped()), found).then(ev.ActorStarted(version="2", log_file=FILE))


def test_a_fork_of_a_branch() -> None:
    second = "1" * 32
    started = ev.ActorStarted(version="2", log_file=FILE)
    before = given(STARTED, forked(1), started, ev.ActorStopped())
    found = replace(FOUND, branch_id=second, origin=LogOrigin(reason="restored", log_id=LOG, head=at(4)))
    story = starting(before, found)
    story.then(forked(4, "restored", parent=BRANCH, branch=second), started)
    assert (story.state.branch_id, story.state.forked_at) == (second, 5)


def test_a_fork_takes_everything_along() -> None:
    """What was attached and steered is wanted again, as after any start."""
    plain = starting(given(STARTED, *attached_steered(), ev.ActorStopped()), FOUND)
    copied = starting(
        given(STARTED, *attached_steered(), ev.ActorStopped()), replace(FOUND, log_file=replace(FILE, inode="7"))
    )
    assert copied.attachments() == plain.attachments() != []
    assert [effect.name for effect in copied.pending] == ["load_model"]
