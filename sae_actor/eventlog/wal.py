"""Whether a write-ahead log holds anything, read without SQLite.

A connection that finds nothing valid in a WAL deletes the file when it closes, also a read-only one, and with it
the evidence of damage. The format: https://sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = struct.Struct(">8I")
"""magic, version, page size, checkpoint number, two salts, two checksums."""
_FRAME = struct.Struct(">6I")
"""page number, pages after a commit (0: no commit), two salts, two checksums."""
_PAIRS = {0x377F0682: "<II", 0x377F0683: ">II"}
"""Magic → byte order of the words that are summed."""
_WORD = 0xFFFFFFFF


def holds_commit(path: Path) -> bool:
    """At least one transaction would be recovered from this WAL; False if there is no file."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return False
    with file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return False
        magic, _, page_size, _, *salts, first, second = _HEADER.unpack(header)
        if magic not in _PAIRS:
            return False
        pairs = _PAIRS[magic]
        sums = _summed(header[:24], pairs, (0, 0))
        if sums != (first, second) or not 512 <= page_size <= 65536:
            return False
        while len(frame := file.read(_FRAME.size + page_size)) == _FRAME.size + page_size:
            _, pages, *frame_salts, first, second = _FRAME.unpack_from(frame)
            sums = _summed(frame[:8], pairs, sums)
            sums = _summed(frame[_FRAME.size :], pairs, sums)
            if frame_salts != salts or sums != (first, second):
                return False
            if pages:
                return True
    return False


def _summed(data: bytes, pairs: str, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    for one, other in struct.iter_unpack(pairs, data):
        first = (first + one + second) & _WORD
        second = (second + other + first) & _WORD
    return first, second
