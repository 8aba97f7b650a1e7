"""The client's calls about runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias

from .wire import Answer, Wire, problem_error

Kind: TypeAlias = Literal["evaluate", "profile", "contrast", "sweep"]
POLL_SECONDS = 0.5
SILENCE_SECONDS = 60.0


class RunCalls:
    """A part of `Client`."""

    _wire: Wire

    def run(
        self,
        kind: Kind,
        spec: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        key: str | None = None,
        **more: Any,
    ) -> str:
        """Ask for a run; its `run_id`, once that is durable. `more`: members of the spec. key: Idempotency-Key."""
        body: Answer = {"type": "Run", "kind": kind, "spec": {**(spec or {}), **more}, "name": name}
        headers = {"Idempotency-Key": key} if key is not None else {}
        _, answer = self._wire.request("POST", "/api/commands", body=body, headers=headers)
        return str(answer["run_id"])

    def runs(self, kind: Kind | None = None, state: str | None = None) -> Answer:
        """`{"runs": […]}`, in the order in which they were asked for."""
        _, answer = self._wire.request("GET", "/api/runs", query={"kind": kind, "state": state})
        return dict(answer)

    def run_now(self, run_id: str) -> Answer:
        """The run as it stands."""
        return dict(self._wire.request("GET", f"/api/runs/{run_id}")[1])

    def run_end(self, run_id: str) -> Answer:
        """The run once it has ended, however long that takes; a failed one is raised."""
        while (found := self.run_now(run_id))["state"] in ("waiting", "running"):
            time.sleep(POLL_SECONDS)
        if found["state"] == "failed":
            raise problem_error(found["error"])
        return found

    def run_rows(self, run_id: str, after: int = 0) -> Iterator[Answer]:
        """The rows after so many that are durable now."""
        with self._table(run_id, "ndjson", after) as parts:
            rest = b""
            for part in parts:
                *lines, rest = (rest + part).split(b"\n")
                yield from map(json.loads, lines)

    def run_table(self, run_id: str, format: Literal["csv", "ndjson", "parquet"] = "csv", after: int = 0) -> bytes:
        """The same as a table; lists and objects in it are JSON."""
        with self._table(run_id, format, after) as parts:
            return b"".join(parts)

    def cancel_run(self, run_id: str) -> None:
        """End it; its rows stay."""
        self._wire.request("POST", "/api/commands", body={"type": "CancelRun", "run_id": run_id})

    def delete_run(self, run_id: str) -> None:
        """Erase its texts and rows."""
        self._wire.request("POST", "/api/commands", body={"type": "DeleteRun", "run_id": run_id})

    def _table(self, run_id: str, format: str, after: int) -> AbstractContextManager[Iterator[bytes]]:
        query = {"format": format, "after": after}
        return self._wire.stream("GET", f"/api/runs/{run_id}/rows", silence=SILENCE_SECONDS, query=query)
