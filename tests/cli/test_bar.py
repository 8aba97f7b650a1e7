"""The progress bar: redrawn on a terminal, one line per stage elsewhere."""

from __future__ import annotations

import io

from sae_actor.cli.bar import Bar


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
