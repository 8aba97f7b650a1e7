"""Rows as NDJSON, CSV, Parquet or what Neuronpedia has."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import closing
from functools import partial
from typing import Any

import msgspec

from ...runs import parquet
from ...runs.job import in_thread
from ...runs.store import RunFile

PAGE = 500


async def ndjson(open_file: Callable[[], RunFile], after: int) -> AsyncIterator[bytes]:
    """The rows as they are stored, a line each."""
    async for page in _pages(open_file, after):
        yield b"".join(line + b"\n" for line in page)


async def csv_table(open_file: Callable[[], RunFile], after: int) -> AsyncIterator[bytes]:
    """A header, then a line a row; lists and objects as JSON."""
    names = await in_thread(lambda: _names(open_file, after))
    yield _csv([names])
    async for page in _pages(open_file, after):
        yield await in_thread(partial(_lines, page, names))


async def parquet_table(open_file: Callable[[], RunFile], after: int) -> bytes:
    """The columns of CSV. `SAEUnsupportedError` without pyarrow."""
    parquet.available()

    def made() -> bytes:
        columns: dict[str, list[Any]] = {name: [] for name in _names(open_file, after)}
        with closing(open_file()) as file:
            for row in file.all_rows(after):
                for name, column in columns.items():
                    column.append(_plain(row.get(name)))
        return parquet.table(columns)

    return await in_thread(made)


async def in_pieces(parts: Generator[bytes, None, None]) -> AsyncIterator[bytes]:
    """What a generator makes that blocks, and that closes what it has open when it ends."""
    try:
        while (part := await in_thread(lambda: next(parts, None))) is not None:
            yield part
    finally:
        await in_thread(parts.close)


async def _pages(open_file: Callable[[], RunFile], after: int) -> AsyncIterator[list[bytes]]:
    file = await in_thread(open_file)
    try:
        while page := await in_thread(partial(file.rows, after, PAGE)):
            after = page[-1][0]
            yield [line for _, line in page]
    finally:
        file.close()


def _names(open_file: Callable[[], RunFile], after: int) -> list[str]:
    """Columns, in the order in which rows first have them."""
    names: dict[str, None] = {}
    with closing(open_file()) as file:
        for row in file.all_rows(after):
            names.update(dict.fromkeys(row))
    return list(names)


def _lines(page: list[bytes], names: list[str]) -> bytes:
    rows = (msgspec.json.decode(line) for line in page)
    return _csv([[_plain(row.get(name)) for name in names] for row in rows])


def _plain(value: Any) -> Any:
    return msgspec.json.encode(value).decode() if isinstance(value, list | dict) else value


def _csv(rows: list[list[Any]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()
