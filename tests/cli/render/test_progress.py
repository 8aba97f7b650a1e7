"""The progress bar: redrawn on a terminal, one line per stage elsewhere."""

from __future__ import annotations

import io

from sae_actor.cli.render.answers import progress
from sae_actor.cli.render.progress import Bar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(out: io.StringIO) -> str:
    with Bar(out) as bar:
        bar.show("wait", 0, 0)
        for done in (0, 50, 100):
            bar.show("download", done, 100)
        bar.show("convert", 1, 4)
    return out.getvalue()


def test_elsewhere_one_line_per_stage() -> None:
    assert len(show(io.StringIO()).splitlines()) == 3


def test_on_a_terminal_it_is_redrawn() -> None:
    shown = show(_Terminal()).splitlines(keepends=True)
    assert "".join(shown).count("\r") == 5
    assert f"[{'#' * 15:<30}]  50%" in "".join(shown)
    assert shown[-1].endswith("\n")
    assert max(len(line.rstrip("\n")) for line in "".join(shown).split("\r")) < 80


def test_a_shorter_line_hides_the_longer_one_before_it() -> None:
    out = _Terminal()
    with Bar(out) as bar:
        bar.show("weights", 10, 100, "2.0 MB/s 45 s")
        bar.show("weights", 90, 100, "2 s")
    first, second = out.getvalue().rstrip("\n").split("\r")[1:]
    assert "2.0 MB/s 45 s  weights" in first
    assert len(second) == len(first)


def test_progress_of_a_download_as_the_bar_takes_it() -> None:
    told = {"phase": "body", "bytes": 5, "total": 9, "rate": 2_000_000.0, "seconds_left": 61.4, "file": "a\x1b/w"}
    assert progress(told) == ("a\N{REPLACEMENT CHARACTER}/w", 5, 9, "2.0 MB/s 61 s")
    assert progress({**told, "seconds_left": 9000.0})[3] == "2.0 MB/s 2.5 h"
    assert progress({**told, "seconds_left": 300.0})[3] == "2.0 MB/s 5 min"
    assert progress({"phase": "listing", "bytes": 0, "total": 0}) == ("listing", 0, 0, "")
    waiting = {**told, "phase": "waiting", "reason": "rate_limited", "seconds_left": 3.0}
    assert progress(waiting) == ("waiting: rate_limited", 5, 9, "3 s")
