"""What libraries have to say: not to users. It goes to the log at `debug`, named with its library, once.

Python's warnings, and what loggers that are not ours say below ERROR, become records of
`sae_actor.libraries.<library>`. `adopt` is called after the import of a library that writes to standard error by
itself, as transformers and huggingface_hub do.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

OWN = "sae_actor"
_logger = logging.getLogger(f"{OWN}.libraries")
_heard: set[tuple[str, str]] = set()
MOST_HEARD = 1000
"""Different sayings that are remembered; one more is left out, so that nobody fills the memory with them."""


class Demotion(logging.Filter):
    """For the handler that users read: lets our own records and errors pass, and says the rest at `debug`."""

    def filter(self, record: logging.LogRecord) -> bool:
        library = record.name.partition(".")[0]
        if library == OWN or record.levelno >= logging.ERROR:
            return True
        _say(library, record.getMessage())
        return False


def listen() -> None:
    """Take what libraries say, from here on. Standard error gets our own records, from WARNING on.

    `-W` on the command line or PYTHONWARNINGS still decide which of Python's warnings there are.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    show(handler)


def show(handler: logging.Handler) -> None:
    """Let this handler, and no other, show what is logged; libraries only as `Demotion` lets them."""
    handler.addFilter(Demotion())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    warnings.showwarning = _warned  # type: ignore[assignment]  # the rest of its arguments is where, not what
    adopt()


def adopt() -> None:
    """Loggers of libraries write to standard error through ours alone."""
    streams = (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] == OWN or not isinstance(logger, logging.Logger):
            continue
        for handler in list(logger.handlers):
            if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
                logger.removeHandler(handler)
                logger.propagate = True


def _warned(message: Warning | str, category: type[Warning], filename: str, *_: object) -> None:
    """In place of `warnings.showwarning`."""
    _say(_library_of(filename), f"{category.__name__}: {message}")


def _library_of(filename: str) -> str:
    """The package that a file belongs to; the file's own name where it is in none."""
    path = Path(filename)
    for parent in path.parents:
        if parent.name in ("site-packages", "dist-packages"):
            return path.relative_to(parent).parts[0].removesuffix(".py")
    return OWN if OWN in path.parts else path.stem


def _say(library: str, words: str) -> None:
    if (library, words) not in _heard and len(_heard) < MOST_HEARD:
        _heard.add((library, words))
        _logger.getChild(library).debug(words)
