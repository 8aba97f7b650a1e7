"""A progress bar on standard error: redrawn in place on a terminal, else one line per stage."""

from __future__ import annotations

import shutil
from types import TracebackType
from typing import Self, TextIO

STAGES = {
    "wait": "waiting for another process that prepares the model",
    "download": "fetching the model (93 MB)",
    "extract": "unpacking",
    "convert": "converting, once (about half a minute)",
}
WIDTH = 30


class Bar:
    """`with Bar(sys.stderr) as bar: work(bar.show)`; leaves the line finished, however the work ends."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._redraws = out.isatty()
        self._stage: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._finish()

    def show(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` of a stage; a total of 0 is unknown."""
        if stage != self._stage:
            self._finish()
            self._stage = stage
            if not self._redraws:
                print(STAGES.get(stage, stage), file=self._out, flush=True)
        if self._redraws:
            self._out.write("\r" + self._line(stage, done, total))
            self._out.flush()

    def _line(self, stage: str, done: int, total: int) -> str:
        label = STAGES.get(stage, stage)
        if not total:
            return label
        filled = WIDTH * done // total
        columns = shutil.get_terminal_size().columns
        return f"[{'#' * filled:<{WIDTH}}] {100 * done // total:3}%  {label}"[: columns - 1]

    def _finish(self) -> None:
        if self._stage is not None and self._redraws:
            print(file=self._out, flush=True)
        self._stage = None
