"""What an export is made of.

events.ndjson   one event a line with salt and digest, the payload's bytes as they were hashed
log.json        the log's id, when it was made, its head
verify.py       the verifier, standard library alone
explain.py      what was active for an answer, likewise; explain_words.py and words.py are parts of it
README.md       how an auditor goes about it
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ... import __version__
from ...domain.events import ERASED
from ...ports import Head
from ..chain import Row
from . import verifier

EVENTS, ABOUT, README = "events.ndjson", "log.json", "README.md"
PROGRAMS = {
    "verify.py": "verifier.py",
    "explain.py": "explainer.py",
    "explain_words.py": "explain_words.py",
    "words.py": "../../domain/words.py",
}
"""As they are called there, and here."""
NAMES = (README, ABOUT, *PROGRAMS, EVENTS)
"""In the order of a tar: a reader has the small ones first."""

_README = """\
# Export of an event log of sae-actor

Log {log_id}, made {created}, {events} events. Every answer of that service is in it: which model and which sparse
autoencoders (SAEs) were active, with which edits, since when and by whom. This needs Python 3.11 or newer, and nothing
else: no package, no network, no model.

## Is it the log that was written?

```bash
python verify.py
```

It prints `ok`, the number of events and the head, and leaves with 0; else it names the first event that is not the one
that was written, and leaves with 65. Each event is chained to the one before by its hash, so nothing can be changed,
exchanged or left out in between. What the export says of its own end proves nothing: events could have been cut off
there. Compare with a head that you have from elsewhere, such as the one that was printed with the export or that the
running service answers at `/api/log/verify`:

```bash
python verify.py --head {position}:{hash}
```

## What was active for an answer?

```bash
python explain.py --list
python explain.py GENERATION
```

The first lists the answers. GENERATION is an id from it, as each answer gave it in its object `sae`, or the answer's
tag, or the position of its first or last event. `--json` prints the events themselves. The chain is verified on the
way, and what comes after a damage is not used.

`explain.py` recomputes the digest of the intervention (`intervention_sha256`) from the record. The answer itself had
the same digest. Weights are named by file with sha256, as `sha256sum FILE` prints it. The digests of prompt and tokens
are sha256 of the salt (in hex, decoded) and the token ids, each as four bytes, lowest first. Whoever has the token ids
of a text can check them:

```bash
python explain.py GENERATION --prompt-ids 1,2,3
python explain.py GENERATION --output-ids 4,5,6
```

## What is what

* `events.ndjson`: the events, one a line. `data` is what happened; `verify.py` begins with the rule of the hashes.
* `log.json`: the log's id and its head.
* A payload that was erased reads `null`. A later `PayloadRedacted` says which one and why, and the chain still holds.

With the package `sae-actor`: `sae-actor log import THIS_FOLDER --data-dir NEW` makes a log of it again, and
`sae-actor log reproduce --data-dir NEW GENERATION --model PATH --sae PATH` runs an answer once more.
"""


def line_of(row: Row) -> bytes:
    """One event as a line of `events.ndjson`."""
    fields = row._asdict() | {
        "salt": None if row.salt is None else row.salt.hex(),
        "data_hash": row.data_hash.hex(),
        "hash": row.hash.hex(),
    }
    return verifier.write_line({name: fields[name] for name in verifier.FIELDS}, row.data or ERASED)


def head_in(about: bytes) -> Head:
    """The head that `log.json` names. Raises `ValueError`, `KeyError`, `TypeError`."""
    head = json.loads(about)["head"]
    return Head(int(head["position"]), str(head["hash"]))


def companions(log_id: str, created: str, head: Head) -> dict[str, bytes]:
    """The files beside `events.ndjson`."""
    about: dict[str, Any] = {
        "format": 1,
        "log_id": log_id,
        "created": created,
        "head": {"position": head.position, "hash": head.hash},
        "exported_by": f"sae-actor {__version__}",
    }
    told = {"log_id": log_id, "created": created, "events": head.position, "position": head.position, "hash": head.hash}
    return {
        README: _README.format(**told).encode(),
        ABOUT: (json.dumps(about, indent=2) + "\n").encode(),
        **{name: (Path(__file__).parent / source).read_bytes() for name, source in PROGRAMS.items()},
    }
