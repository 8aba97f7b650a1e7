"""A progress bar on standard error: redrawn in place on a terminal, else one line per stage."""

from __future__ import annotations

import shutil
from types import TracebackType
from typing import Self, TextIO

STAGES = {
    "wait": "waiting for another process to prepare the model",
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
        self._width = 0
        """Characters of the line that is on the terminal."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._finish()

    def show(self, stage: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` of a stage; a total of 0 is unknown. `note` is for this moment, on a terminal alone."""
        if stage != self._stage:
            self._finish()
            self._stage = stage
            if not self._redraws:
                print(STAGES.get(stage, stage), file=self._out, flush=True)
        if self._redraws:
            line = self._line(stage, done, total, note)
            self._out.write(f"\r{line:<{self._width}}")
            self._out.flush()
            self._width = len(line)

    def _line(self, stage: str, done: int, total: int, note: str) -> str:
        label = "  ".join(filter(None, (note, STAGES.get(stage, stage))))
        columns = shutil.get_terminal_size().columns
        if not total:
            return label[: columns - 1]
        filled = WIDTH * done // total
        return f"[{'#' * filled:<{WIDTH}}] {100 * done // total:3}%  {label}"[: columns - 1]

    def _finish(self) -> None:
        if self._stage is not None and self._redraws:
            print(file=self._out, flush=True)
        self._stage, self._width = None, 0
