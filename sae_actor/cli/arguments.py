"""The command line's grammar. Builds in milliseconds, without heavy imports."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, get_args

from .. import __version__
from ..config.access import read_line
from ..domain.refs import Exclusion, Method, Mode, NamedPositions, Unit
from . import exit_codes, values

SERVING = ("demo", "serve")
NAMES = "hub id, saelens:RELEASE/SAE_ID or neuronpedia:MODEL/SOURCE"


class _Parser(argparse.ArgumentParser):
    """Options are written out: an abbreviation would change its meaning with the next option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(exit_codes.USAGE, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """The whole grammar; wrong usage exits with 64."""
    top = _Parser(
        prog="sae-actor",
        description="Attach sparse autoencoders to a running language model, steer them, and prove what was active.",
        epilog="Environment: SAE_ACTOR_URL and SAE_ACTOR_TOKEN for the client, SAE_ACTOR_CONFIG and "
        "SAE_ACTOR_<SECTION>_<KEY> for the service (see config.toml). "
        f"Exit codes: {', '.join(f'{code} {what}' for code, what in exit_codes.MEANINGS.items())}.",
    )
    top.add_argument("--version", action="version", version=f"sae-actor {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    _add_serving(commands)
    _add_resources(commands)
    _add_steering(commands)
    _add_presets(commands)
    _add_text(commands)
    _add_log(commands)
    _add_backups(commands)
    _add_families(commands)
    _add_tokens(commands)
    return top


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def _add_serving(commands: _Commands) -> None:
    demo = commands.add_parser("demo", help="serve a small real model with the bundled SAE attached")
    serve = commands.add_parser("serve", help="run the service")
    for each in (demo, serve):
        each.add_argument("--config", type=Path, metavar="FILE", help="settings, in the form of config.toml")
        each.add_argument("--data-dir", metavar="DIR", help="folder of the log and the SAEs")
        each.add_argument("--host", help="address to listen on; addresses other machines can reach require a token")
        each.add_argument("--port", type=int, help="0 chooses a free port")
    serve.add_argument("--model", metavar="MODEL", help="model to load at the start: hub id or local path")
    serve.add_argument("--read-only", action="store_true", help="serve a log without changing it")
    serve.add_argument(
        "--accept-truncation", type=values.position, metavar="N", help="continue at position N after events were lost"
    )


def _client(commands: _Commands, name: str, about: str) -> argparse.ArgumentParser:
    each = commands.add_parser(name, help=about, description=about)
    each.add_argument("--url", metavar="URL", help="the service (default: $SAE_ACTOR_URL, else http://127.0.0.1:8000)")
    each.add_argument("--json", action="store_true", help="print the raw answer")
    return each


def _add_resources(commands: _Commands) -> None:
    _client(commands, "status", "what is loaded and attached")
    catalog = _client(commands, "catalog", "the SAEs inside a hub repository")
    catalog.add_argument("repository", metavar="REPO", help=NAMES)
    catalog.add_argument("--revision", default="main")
    fit = _client(commands, "fit", "what a model would take of the service's memory, before its weights are fetched")
    fit.add_argument("model", metavar="MODEL", help="hub id, or a path on the service's machine")
    fit.add_argument("sae", nargs="?", metavar="SAE", help="an sae_id that is attached to it (any unique prefix works)")
    fit.add_argument("--revision", metavar="R", default="main")
    fit.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    fit.add_argument("--quantization", choices=("int8", "nf4"), help="how bitsandbytes is to quantise the weights")
    download = _client(commands, "download", "fetch one SAE from the hub and wait for it")
    download.add_argument("repository", metavar="REPO", help=NAMES)
    download.add_argument("--path", metavar="P", help="folder or file of the SAE inside the repository")
    download.add_argument("--revision", metavar="R", default="main")
    download.add_argument("--force", action="store_true", help="fetch again, and follow a branch that has moved")
    _client(commands, "list", "the SAEs on disk")
    attach = _client(commands, "attach", "attach an SAE to the model")
    _sae(attach)
    attach.add_argument("--layer", type=values.layer, metavar="N", help="default: the layer it was trained at")
    attach.add_argument("--mode", choices=get_args(Mode), default="steer")
    attach.add_argument("--replace", action="store_true", help="replace what is attached")
    _exclude(attach, "positions that reconstruct passes through", "what the edits leave out, or sink")
    _sae(_client(commands, "detach", "detach an SAE from the model and free its memory"))
    _sae(_client(commands, "delete", "delete an SAE's files; of an import, forget the record"))


def _add_steering(commands: _Commands) -> None:
    steer = _client(commands, "steer", "replace the steering of an attached SAE")
    _sae(steer)
    steer.add_argument("edits", nargs="*", type=values.edit, metavar="FEATURE=STRENGTH")
    steer.add_argument("--clear", action="store_true", help="no edits at all")
    steer.add_argument("--disable", action="store_true", help="keep the edits, but switch them off")
    _of_edits(steer)


def _add_presets(commands: _Commands) -> None:
    about = "interventions with a name"
    preset = commands.add_parser("preset", help=about, description=about)
    inside = preset.add_subparsers(dest="preset_command", metavar="COMMAND", required=True, parser_class=_Parser)
    _client(inside, "list", "the presets, and whether each can be used now")
    save = _client(inside, "save", "save edits of an SAE under a name")
    save.add_argument("name", metavar="NAME", help="small letters, digits and . _ -")
    _sae(save)
    save.add_argument("edits", nargs="*", type=values.edit, metavar="FEATURE=STRENGTH")
    save.add_argument("--description", metavar="TEXT")
    save.add_argument("--mode", choices=get_args(Mode), default="steer")
    _of_edits(save)
    _client(inside, "delete", "delete a preset").add_argument("name", metavar="NAME")


def _of_edits(each: argparse.ArgumentParser) -> None:
    each.add_argument("--method", choices=get_args(Method), default="add")
    each.add_argument("--positions", choices=get_args(NamedPositions), default="all")
    each.add_argument("--unit", choices=get_args(Unit), default="raw")
    _exclude(each, "positions that are left alone", "sink")


def _add_text(commands: _Commands) -> None:
    generate = _client(commands, "generate", "continue a prompt, or answer it with --chat, under what is attached")
    generate.add_argument("prompt", metavar="PROMPT")
    generate.add_argument("--chat", action="store_true", help="send it as a user message, through the chat template")
    generate.add_argument("--system", metavar="TEXT", help="system message, with --chat")
    generate.add_argument("--max-tokens", type=int, metavar="N")
    generate.add_argument("--temperature", type=values.number, metavar="T", help="0 is greedy")
    generate.add_argument("--top-p", type=values.number, metavar="P")
    generate.add_argument("--seed", type=int)
    generate.add_argument("--stop", action="append", metavar="TEXT", help="may be given several times")
    generate.add_argument(
        "--shade",
        type=values.shaded,
        metavar="FEATURE",
        help="draw the tokens of the answer at its end, shaded by the activation of this feature before any edit, and "
        "underlined where an edit held; SAE:FEATURE if several SAEs are attached",
    )
    instead = generate.add_mutually_exclusive_group()
    instead.add_argument("--baseline", action="store_true", help="without any intervention")
    instead.add_argument("--preset", metavar="NAME", help="under this preset instead of the service's steering")
    events = _client(commands, "events", "follow the service's events")
    events.add_argument("--after", type=values.position, metavar="N", help="only events after position N")
    events.add_argument("--types", metavar="A,B", help="only these types")


def _add_families(commands: _Commands) -> None:
    about = "the model types that are supported, and their hook points"
    families = commands.add_parser("families", help=about, description=about)
    families.add_argument(
        "--check",
        metavar="MODEL",
        help="what the blocks of this model are made of: a folder, or a hub id (its config.json alone is fetched)",
    )
    families.add_argument("--revision", metavar="R", default="main", help="of a hub id")


def _add_tokens(commands: _Commands) -> None:
    about = "make a token and its line of the tokens file, or (`token list`) show who holds one"
    token = commands.add_parser(
        "token",
        help=about,
        description=about,
        usage="sae-actor token NAME ROLE [FIELD=VALUE ...] | sae-actor token list",
    )
    token.add_argument("name", metavar="NAME", help="of who gets the token; `list`: show the grants, never the tokens")
    token.add_argument("role", metavar="ROLE", nargs="?", help="viewer, user or operator")
    token.add_argument("fields", metavar="FIELD=VALUE", nargs="*", help="of the line, such as running=4 or presets=a,b")
    token.add_argument("--file", type=Path, metavar="FILE", help="tokens file to put the line into; made if missing")
    token.add_argument("--config", type=Path, metavar="FILE", help="of `list`: settings, in the form of config.toml")
    token.add_argument("--json", action="store_true", help="print it as JSON")


def _wrong_token(arguments: argparse.Namespace) -> str | None:
    name, role, fields = arguments.name, arguments.role, arguments.fields
    if name == "list":
        own = role is None and arguments.file is None
        return None if own else "`token list` takes no role, no field and no --file"
    if role is None:
        return "give a name and a role, or `list`"
    if arguments.config is not None:
        return "--config belongs to `token list`; --file names the tokens file"
    if any(len(each.split()) != 1 for each in (name, role, *fields)):
        return "no name, role or field may be empty or hold a space"
    try:
        read_line(" ".join((name, role, "0" * 64, *fields)))
    except ValueError as error:
        return str(error)
    return None


def _add_backups(commands: _Commands) -> None:
    backup = _client(commands, "backup", "the log and what belongs to it as one file, of a running service")
    backup.add_argument("file", type=values.destination, metavar="FILE", help="tar to create")
    backup.add_argument("--saes", action="store_true", help="with the files of SAEs")
    backup.add_argument("--data-dir", metavar="DIR", help="of the folder of a stopped service instead")
    about = "make a data folder of a backup, verified before anything is in it; it must be empty or missing"
    restore = commands.add_parser("restore", help=about, description=about)
    restore.add_argument("file", type=Path, metavar="FILE", help="as `backup` wrote it")
    restore.add_argument("--data-dir", metavar="DIR", help="folder to make (default: that of the service)")
    restore.add_argument("--json", action="store_true", help="print the raw answer")


def _add_log(commands: _Commands) -> None:
    log = commands.add_parser("log", help="the audit, from the log alone: its files, or a running service")
    inside = log.add_subparsers(dest="log_command", metavar="COMMAND", required=True, parser_class=_Parser)
    show = _asking(inside, "show", "the events, one a line")
    show.add_argument("--after", type=values.position, default=0, metavar="N", help="only events after position N")
    show.add_argument("--types", metavar="A,B", help="only these types")
    show.add_argument("--command", dest="command_id", metavar="ID", help="only events of this command")
    show.add_argument("--sae", metavar="SAE", help="only events of this SAE (any unique prefix of the id works)")
    show.add_argument("--principal", metavar="WHO", help="only events requested by this principal")
    show.add_argument("--since", type=values.time, metavar="TIME", help="only events at or after this time (RFC 3339)")
    show.add_argument("--until", type=values.time, metavar="TIME", help="only events up to this time (RFC 3339)")
    verify = _asking(
        inside, "verify", "verify the hash chain; exit code 65 if it is broken, or if its end cannot be confirmed"
    )
    verify.add_argument(
        "--head", type=values.head, action="append", default=[], metavar="POSITION:HASH",
        help="a head noted elsewhere that the log must contain; may be given several times",
    )  # fmt: skip
    state = _asking(inside, "state", "the state after the events")
    state.add_argument("--at", type=values.moment, metavar="N|TIME", help="at position N, or at a time (RFC 3339)")
    diff = _asking(inside, "diff", "what changed between two positions or times")
    diff.add_argument("before", nargs="?", type=values.moment, metavar="A", help="position, or time (RFC 3339)")
    diff.add_argument("after", nargs="?", type=values.moment, metavar="B", help="position, or time (RFC 3339)")
    diff.add_argument(
        "--other", type=Path, metavar="LOG",
        help="in place of A and B, another history of this folder's log, a data folder or an export: the last event "
        "that both have, and what changed in each since then",
    )  # fmt: skip
    explain = _asking(inside, "explain", "what was active for one answer, and which events set it")
    explain.add_argument(
        "of", metavar="GENERATION", help="id, as the answer gave it in `sae`; its tag; or its position"
    )
    explain.add_argument("--methods", action="store_true", help="a paragraph to reproduce it by, and what to cite")
    export = _asking(inside, "export", "the log as files that anyone can read and verify with a bare Python")
    export.add_argument(
        "to", type=values.destination, metavar="DEST", help="folder to create, or a name ending in .tar"
    )
    _log(inside, "import", "make a log from an export; an existing log is never overwritten").add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="folder or .tar of an export"
    )
    redact = _log(inside, "redact", "erase the payload of one event for good; the chain stays whole")
    redact.add_argument(
        "position", type=values.position, metavar="POSITION", help="of the event; `log show` lists them"
    )
    redact.add_argument(
        "--why", type=values.reason, required=True, metavar="TEXT", help="reason to record with the erasure"
    )
    reproduce = _log(inside, "reproduce", "run generations again from the log, and check its record of them")
    reproduce.add_argument("generation_id", nargs="*", metavar="GENERATION_ID", help="as the answer gave it")
    reproduce.add_argument(
        "--model", type=Path, metavar="PATH", help="folder of the model, on another machine than that of the log"
    )
    reproduce.add_argument(
        "--sae", type=Path, action="append", default=[], metavar="PATH",
        help="folder or file of an SAE, likewise; may be given several times",
    )  # fmt: skip
    reproduce.add_argument("--all", action="store_true", help="every generation in the log")
    reproduce.add_argument(
        "--prompt-file", type=Path, metavar="FILE",
        help="the prompt, if the log has only its digest: text, or token ids or chat messages as JSON",
    )  # fmt: skip
    reproduce.add_argument(
        "--schema-file", type=Path, metavar="FILE",
        help="the JSON schema of its response_format, if the log has only its digest",
    )  # fmt: skip


def _log(inside: _Commands, name: str, about: str) -> argparse.ArgumentParser:
    each = inside.add_parser(name, help=about, description=about)
    each.add_argument(
        "--data-dir", metavar="DIR", help="folder of the log (default: that of the service, if it has stopped)"
    )
    each.add_argument("--json", action="store_true", help="print the raw answer")
    return each


def _asking(inside: _Commands, name: str, about: str) -> argparse.ArgumentParser:
    each = _log(inside, name, about)
    each.add_argument("--url", metavar="URL", help="ask this service instead of reading files")
    return each


def _sae(each: argparse.ArgumentParser) -> None:
    each.add_argument("sae", metavar="SAE", help="an sae_id (any unique prefix works)")


def _exclude(each: argparse.ArgumentParser, what: str, usual: str) -> None:
    about = f"{what}, may be given several times (default: {usual})"
    each.add_argument("--exclude", action="append", choices=(*get_args(Exclusion), "none"), help=about)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, checked against the grammar; wrong usage exits with 64."""
    grammar = parser()
    arguments, rest = grammar.parse_known_args(argv)
    takes_edits = arguments.command == "steer" or getattr(arguments, "preset_command", None) == "save"
    if rest and takes_edits and not any(values.is_flag(each) for each in rest):
        # argparse takes positional arguments in one place alone, and what begins with "-" for an option
        try:
            arguments.edits, rest = [*arguments.edits, *map(values.edit, rest)], []
        except argparse.ArgumentTypeError as error:
            grammar.error(f"{arguments.command}: {error}")
    if arguments.command == "token" and not any(each.startswith("-") for each in rest):
        arguments.fields, rest = [*arguments.fields, *rest], []
    if rest:
        grammar.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command == "steer" and arguments.clear and arguments.edits:
        grammar.error("steer: --clear cannot be combined with FEATURE=STRENGTH")
    if arguments.command == "steer" and not arguments.clear and not arguments.edits:
        grammar.error("steer: no edit given; give FEATURE=STRENGTH, such as 584=85, or --clear to remove all edits")
    if getattr(arguments, "log_command", None) == "diff":
        if (arguments.before, arguments.after).count(None) != (2 if arguments.other else 0):
            grammar.error("log diff: give two positions or times A B, or --other LOG")
        if arguments.other is not None and arguments.url is not None:
            grammar.error("log diff: --other compares files; give --data-dir, not --url")
    if getattr(arguments, "log_command", None) == "reproduce" and bool(arguments.generation_id) == arguments.all:
        grammar.error("log reproduce: give GENERATION_ID… or --all")
    if arguments.command == "token" and (why := _wrong_token(arguments)) is not None:
        grammar.error(f"token: {why}")
    if arguments.command == "generate" and arguments.system is not None and not arguments.chat:
        grammar.error("--system requires --chat")
    return arguments
