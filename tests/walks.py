"""The way of one thing through the package: which modules are entered, from one call to another.

    walk = Walk(calling("sae_actor.api.routes.saes", "attach"), calling("sae_actor.subscriptions.broadcast", ...))
    with walk:              # around the start of the service, so that its threads are followed too
        ...
    walk.modules            # in the order in which they were entered

A module is entered when one of its functions is called, or goes on; it counts once. Importing is not entering, and
who called the first one and waits for it is not on the way.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

Call = Callable[[FrameType], bool]
"""Whether a frame, as it is entered, is the call that is meant."""


def calling(module: str, function: str, when: Call = lambda frame: True) -> Call:
    """A call of this function, of a class as `Class.function`."""
    return lambda frame: (
        frame.f_code.co_qualname == function and frame.f_globals.get("__name__") == module and when(frame)
    )


class Walk:
    """Follows every thread that begins inside `with`, and the one that enters it; the first walk that is whole counts.

    first, last    the calls that it goes from and to; `last` is followed to its end
    aside          modules that run meanwhile for something else
    """

    def __init__(
        self, first: Call, last: Call, *, aside: frozenset[str] = frozenset(), package: str = "sae_actor"
    ) -> None:
        self._first = first
        self._last = last
        self._aside = aside
        self._package = package
        self._entered: dict[str, str] = {}
        self._callers: frozenset[FrameType] | None = None
        """Of the first call; None: it has not come."""
        self._ending: FrameType | None = None
        self.over = False

    @property
    def modules(self) -> tuple[str, ...]:
        """Those of the package that were entered, in order."""
        assert self.over, f"the walk did not end; so far it entered {list(self._entered)}"
        return tuple(self._entered)

    def __str__(self) -> str:
        """Each module and the function through which it was entered first."""
        width = max(map(len, self.modules))
        lines = (f"{at:3}  {name:{width}}  {self._entered[name]}" for at, name in enumerate(self.modules, 1))
        return "\n".join((f"{len(self.modules)} modules", *lines))

    def __enter__(self) -> Walk:
        threading.setprofile(self._saw)
        sys.setprofile(self._saw)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        self._callers, self._ending = frozenset(), None

    def _saw(self, frame: FrameType, event: str, _: Any) -> None:
        if self.over or event not in ("call", "return"):
            return
        if event == "return":
            self.over = frame is self._ending
            return
        if self._callers is None:
            if not self._first(frame):
                return
            self._callers = frozenset(_callers(frame))
        name: str = frame.f_globals.get("__name__", "")
        if name.partition(".")[0] != self._package or frame.f_code.co_name == "<module>":
            return
        if name not in self._aside and frame not in self._callers:
            self._entered.setdefault(name, frame.f_code.co_qualname)
        if self._ending is None and self._last(frame):
            self._ending = frame


def _callers(frame: FrameType) -> Iterator[FrameType]:
    while frame.f_back is not None:
        frame = frame.f_back
        yield frame
