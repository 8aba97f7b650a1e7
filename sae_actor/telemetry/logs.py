"""What the service says on standard error: lines for people, or one JSON object a line.

    {"time": "2026-01-31T12:00:00.000000Z", "level": "INFO", "logger": "sae_actor.access", "message": "…",
     "method": "POST", "path": "/api/commands", "status": 202, "ms": 3.1, "principal": "local", "command_id": "…"}

`[server] log_level` is that of the service itself; of libraries there are errors, and at `debug` their warnings
(`libraries`). What they say at lower levels is not shown: it may hold a signed address.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from ..config import LogFormat, LogLevel
from ..ports.clock import rfc3339
from . import libraries

logger = logging.getLogger("sae_actor")


class JsonLines(logging.Formatter):
    """A record as one line of JSON; an exception is a member with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": rfc3339(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name) for name in ACCESS if hasattr(record, name)},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def set_up(format_: LogFormat, level: LogLevel) -> None:
    """Everything that is logged goes to standard error, in this format."""
    handler = logging.StreamHandler(sys.stderr)
    lines = JsonLines() if format_ == "json" else logging.Formatter("%(levelname)s %(name)s: %(message)s")
    handler.setFormatter(lines)
    libraries.show(handler)
    logger.setLevel(level.upper())


def say(message: str) -> None:
    """Something that whoever started the service must read, at any level."""
    root = logging.getLogger()
    if any(isinstance(handler.formatter, JsonLines) for handler in root.handlers):
        logger.error(message)
    else:
        print(f"sae-actor: {message}", file=sys.stderr)


ACCESS = ("method", "path", "status", "ms", "principal", "command_id")
