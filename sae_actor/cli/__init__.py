"""`sae-actor`: one grammar, three kinds of commands.

    arguments    the grammar; wrong usage leaves with 64 before anything is imported that computes
    remote       clients of a running service: one function per command, over `sae_actor.client`
    serving      `serve` and `demo`: settings, then `sae_actor.serve`
    offline      `log …`: the audit from the files of a data folder, without a service, a model or a network
    reproduction `log reproduce`: texts run again, the one command here that loads a model
    bundles      `log export|import|redact`: what leaves a log, becomes one, and is taken out of one
    accounts, answers   differences and explanations in plain words
    showing      answers as text for a person
    exits        exit codes

`main` alone turns what goes wrong into a message and an exit code.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ..config import ConfigurationError, strangers
from ..errors import LogError, SAEError
from . import exits, offline, remote, serving
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
        return _failed(f"{error.detail} ({error.code})", exits.exit_code_of(error))
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        # the reader of our output left, as `| head` does; nothing may be flushed into the pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command not in SERVING:  # the service says it in the form of its other lines
        for each in strangers():
            print(f"sae-actor: warning: {each}", file=sys.stderr)
    match arguments.command:
        case "serve":
            return serving.serve(arguments)
        case "demo":
            return serving.demo(arguments)
        case "log":
            return offline.run(arguments)
        case _:
            return remote.run(arguments)


def _failed(message: str, code: int) -> int:
    print(f"sae-actor: {message}", file=sys.stderr)
    return code
