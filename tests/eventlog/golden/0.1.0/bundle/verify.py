"""Verify an exported event log with nothing but Python's standard library.

    python verify.py [FOLDER] [--head POSITION:HASH]

FOLDER (default: where this file lies) holds `events.ndjson`, one event a line, and `log.json`: the log's id and its
head. Each event's hash covers the one before it:

    data_hash = sha256(salt + data)
    hash      = sha256(b"sae-actor event 1\\n" + previous + position (8 bytes) + schema (4)
                       + lengths of event_id, type, time, command_id (or -1), principal (4 each)
                       + the five texts in UTF-8 + data_hash)

Numbers are big-endian; `previous` of event 1 is sha256(b"sae-actor genesis 1\\n" + log id). A payload that was erased
is `null`, and a later PayloadRedacted names its event. What an export says of its own end proves nothing about events
that were left out there: give `--head` with a position and hash that you noted from the running service.

Exit code 0: every event is the one that was written. 65: the first that is not is named.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FIELDS = ("position", "event_id", "type", "schema", "time", "command_id", "principal", "salt", "data_hash", "hash")
"""Of a line, in this order; then `data`, whose bytes are those that were hashed."""
TEXTS = ("event_id", "type", "time", "command_id", "principal")


class BadEventError(Exception):
    """`position` is the first one that does not verify."""

    def __init__(self, position: int, what: str) -> None:
        super().__init__(f"event {position}: {what}")
        self.position = position


def write_line(fields: dict[str, Any], data: bytes) -> bytes:
    """One event as it is exported. Inside a JSON string a quote is escaped, so `,"data":` comes once."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))[:-1].encode() + b',"data":' + data + b"}\n"


def read_line(line: bytes) -> tuple[dict[str, Any], bytes]:
    """Fields and payload of a line. Raises `ValueError` for one that was not written by `write_line`."""
    head, _, tail = line.partition(b',"data":')
    fields = json.loads(head + b"}")
    data = tail[:-2]
    json.loads(data)
    if tuple(fields) != FIELDS or write_line(fields, data) != line:
        raise ValueError("not as it was exported")
    if type(fields["position"]) is not int or type(fields["schema"]) is not int:
        raise ValueError("a number is malformed")
    return fields, data


def digest(previous: bytes, fields: dict[str, Any], data_hash: bytes) -> bytes:
    texts = [None if fields[name] is None else fields[name].encode() for name in TEXTS]
    lengths = [-1 if text is None else len(text) for text in texts]
    preimage = b"sae-actor event 1\n" + previous + struct.pack(">QI5i", fields["position"], fields["schema"], *lengths)
    return hashlib.sha256(preimage + b"".join(text or b"" for text in texts) + data_hash).digest()


def walk(lines: Iterable[bytes], log_id: str) -> Iterator[tuple[int, str]]:
    """Position and hash of every event, from those of the empty log on. Raises `BadEventError`."""
    previous = hashlib.sha256(b"sae-actor genesis 1\n" + bytes.fromhex(log_id)).digest()
    position = 0
    erased: set[int] = set()
    yield position, previous.hex()
    for line in lines:
        try:
            fields, data = read_line(line)
            data_hash = bytes.fromhex(fields["data_hash"])
            stored = digest(previous, fields, data_hash)
        except (ValueError, TypeError, AttributeError, KeyError, struct.error, RecursionError) as error:
            raise BadEventError(position + 1, f"the line cannot be read: {error}") from None
        if fields["position"] != position + 1:
            raise BadEventError(position + 1, f"position {fields['position']} follows {position}")
        if stored.hex() != fields["hash"] or data_hash.hex() != fields["data_hash"]:
            raise BadEventError(position + 1, "the hash does not match")
        if fields["salt"] is None and data == b"null":
            erased.add(position + 1)
        elif hashlib.sha256(_salt(fields, position + 1) + data).digest() != data_hash:
            raise BadEventError(position + 1, "the payload does not match its digest")
        if fields["type"] == "PayloadRedacted":
            erased.discard(json.loads(data)["redacted_position"])
        position, previous = position + 1, stored
        yield position, previous.hex()
    if erased:
        raise BadEventError(min(erased), "the payload is missing, and no PayloadRedacted names it")


def _salt(fields: dict[str, Any], position: int) -> bytes:
    try:
        salt = bytes.fromhex(fields["salt"])
    except (TypeError, ValueError):
        raise BadEventError(position, "the salt is malformed") from None
    if salt.hex() != fields["salt"]:
        raise BadEventError(position, "the salt is not as it was exported")
    return salt


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--head", action="append", default=[], metavar="POSITION:HASH", help="a head you witnessed")
    options = parser.parse_args(arguments)
    heads = [(int(position), stored) for position, _, stored in (each.partition(":") for each in options.head)]
    try:
        about = json.loads((options.folder / "log.json").read_bytes())
        heads.append((about["head"]["position"], about["head"]["hash"]))
        wanted: dict[int, set[str]] = {}
        for at, witnessed in heads:  # what the export says of an event does not outdo what a witness says of it
            wanted.setdefault(at, set()).add(witnessed)
        position, stored = 0, ""
        with (options.folder / "events.ndjson").open("rb") as lines:
            for position, stored in walk(lines, about["log_id"]):
                if wanted.pop(position, {stored}) != {stored}:
                    raise BadEventError(position, "not the event that was witnessed")
        if wanted:
            raise BadEventError(position + 1, f"missing; an event {max(wanted)} was witnessed")
        if position != about["head"]["position"]:
            raise BadEventError(about["head"]["position"] + 1, "comes after the head of the export")
    except (BadEventError, OSError, ValueError, KeyError, TypeError) as error:
        print(error)
        return 65
    print(f"ok: {position} events, head {position}:{stored}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
