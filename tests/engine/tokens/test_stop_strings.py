"""Stop strings: where they are found, what is held back for them, what is given out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_actor.engine.tokens.reasoning import RunKind, TextRun
from sae_actor.engine.tokens.stop_strings import StopStrings

SAID, THOUGHT, MARK, FORM, HIDDEN = RunKind.SAID, RunKind.THOUGHT, RunKind.MARK, RunKind.FORM, RunKind.HIDDEN


def text(runs: Sequence[TextRun]) -> str:
    return "".join(run.whole for run in runs)


def push(stops: StopStrings, piece: str, kind: RunKind = SAID, *, counts: bool = True) -> tuple[str, bool]:
    runs, stopped = stops.push([TextRun(piece, kind)] if piece else [], counts=counts)
    return text(runs), stopped


@given(
    st.lists(st.text(alphabet="ab", max_size=4), max_size=12),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
)
def test_they_cut_like_a_search_in_the_whole_text(pieces: list[str], stop: list[str]) -> None:
    stops = StopStrings(stop)
    shown, stopped = "", False
    for at, piece in enumerate(pieces):
        given_out, stopped = push(stops, piece)
        shown += given_out
        assert not any(each in shown for each in stop)
        if stopped:
            break
        held = "".join(pieces[: at + 1])[len(shown) :]
        assert not held or any(each.startswith(held) for each in stop)
    if not stopped:
        shown += text(stops.flush())
    whole = "".join(pieces)
    found = [at for at in (whole.find(each) for each in stop) if at >= 0]
    assert stopped == bool(found)
    if found:
        # Of two that begin at different places, the one that is complete first ends the text.
        assert whole.startswith(shown)
        assert any(whole.startswith(each, len(shown)) for each in stop)
    else:
        assert shown == whole


def test_what_may_become_a_stop_string_is_held_back() -> None:
    stops = StopStrings(("END",))
    assert push(stops, "the E") == ("the ", False)
    assert push(stops, "N") == ("", False)
    assert push(stops, "E") == ("EN", False)
    assert push(stops, "ND of it") == ("", True)
    stops = StopStrings(("END",))
    assert push(stops, "E") == ("", False)
    assert text(stops.flush()) == "E"


RUNS = [TextRun("ab", SAID), TextRun("<x>", HIDDEN), TextRun("\ncd", SAID), TextRun("<y>", HIDDEN), TextRun("ef", SAID)]


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        ("<x>", "ab"),  # a special token
        ("b<x>", "a"), ("<x>\n", "ab"), ("b<x>\nc", "a"), ("d<y>ef", "ab\nc"),  # with text around it
        ("b\nc", "a"),  # the text as its reader sees it
        ("<y>", "ab\ncd"), ("<x>\ncd<y>", "ab"),
        ("x", None), ("<x", None), (">", None), ("x>\n", None),  # part of a token that nobody sees
        ("\n", "ab"), ("<z>", None),
    ],
)  # fmt: skip
def test_in_what_is_left_out_of_the_text_too(stop: str, shown: str | None) -> None:
    stops, found = StopStrings((stop,)), ""
    for run in RUNS:
        given_out, stopped = stops.push([run])
        found += text(given_out)
        if stopped:
            assert found == shown
            return
    assert shown is None
    assert found + text(stops.flush()) == "ab\ncdef"


def test_texts_of_before_were_looked_at_without_what_was_left_out() -> None:
    stops = StopStrings(("<x>", "d<y>"), hidden=False)
    assert text([run for each in RUNS for run in stops.push([each])[0]]) == "ab\ncdef"
    stops = StopStrings(("b\nc",), hidden=False)
    assert [stops.push([each])[1] for each in RUNS[:3]] == [False, False, True]


@pytest.mark.parametrize(
    ("stop", "shown"), [("\nc", "ab\nc"), ("<x>", "ab<x>"), ("b<x>\n", "ab<x>\n"), ("b\nc", "ab\nc"), ("b", "ab")]
)
def test_included(stop: str, shown: str) -> None:
    stops, found = StopStrings((stop,), included=True), ""
    for run in RUNS:
        given_out, stopped = stops.push([run])
        found += text(given_out)
        if stopped:
            break
    assert found == shown


def test_what_is_complete_too_early_is_no_stop_string() -> None:
    stops = StopStrings(("ab",))
    assert push(stops, "xab", counts=False) == ("xab", False)
    assert push(stops, "ca", counts=False) == ("c", False)
    assert push(stops, "b!") == ("", True), "it is complete with a token that counts"
    stops = StopStrings(("ab", "abac"))
    assert push(stops, "ab", counts=False) == ("", False)
    assert push(stops, "x") == ("abx", False), "nor is it found later, held back for another one"


def test_thoughts_and_what_is_said_are_texts_of_their_own() -> None:
    answer = [TextRun("ab", THOUGHT), TextRun("</t>", MARK), TextRun("\n", FORM), TextRun("cd", SAID)]

    def ends(stop: str) -> str | None:
        stops, found = StopStrings((stop,)), ""
        for run in answer:
            given_out, stopped = stops.push([run])
            found += text(given_out)
            if stopped:
                return found
        return None

    assert ends("b") == "a"
    assert ends("d") == "ab</t>\nc"
    assert ends("</t>") == ends("</t>\n") == "ab"
    assert ends("b</t>\ncd") == "a"
    assert [ends(each) for each in ("bc", "\n", "t", "/t>\n")] == [None] * 4
