"""Run one command. The only place where an error becomes a message and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from ..config import ConfigurationError, strangers
from ..errors import LogError, SAEError
from ..telemetry import logs
from . import backup_commands, client_commands, exit_codes, families, log_commands, serve_commands, tokens
from .arguments import SERVING, parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. Wrong usage and `--help` raise `SystemExit`, as argparse does."""
    arguments = parse(argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except ConfigurationError as error:
        return _failed(str(error), error.exit_code)
    except LogError as error:
        return _failed(error.detail, error.exit_code)
    except SAEError as error:
        return _failed(f"{error.detail} ({error.code})", exit_codes.exit_code_of(error))
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has ended, as `head` does; nothing may be flushed into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.OK


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command not in SERVING:  # the service logs these warnings in its own format
        for each in strangers():
            print(f"sae-actor: warning: {each}", file=sys.stderr)
    return COMMANDS.get(arguments.command, client_commands.run)(arguments)


def _failed(message: str, code: int) -> int:
    logs.say(message)
    return code


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": serve_commands.serve,
    "demo": serve_commands.demo,
    "token": tokens.run,
    "families": families.run,
    "backup": backup_commands.backup,
    "restore": backup_commands.restore,
    "log": log_commands.run,
}
"""All others are a client's."""
