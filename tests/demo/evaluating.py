"""What the bundled SAE's reconstruction costs the demo's model: a run of kind `evaluate`, asked for over HTTP.

    python -m tests.demo.evaluating [--texts N] [--max-tokens N] [--exclude sink|special …]

Prints the summary. The texts are `texts/contexts.ndjson`, 200 contexts of 128 tokens; by default attention sinks pass
unchanged in all passes, as in the service. It takes minutes on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import httpx

from sae_actor.demo import SAE_FOLDER
from sae_actor.demo.model import prepare_model
from tests.api.over_http import over_http

HERE = Path(__file__).parent
CONTEXTS = HERE / "texts" / "contexts.ndjson"
EVALUATED = HERE / "texts" / "evaluated.json"
"""What the command printed."""


async def summary(
    folder: Path, model: Path, *, texts: int | None = None, begin: str = "", **spec: Any
) -> dict[str, Any]:
    """Of a service that writes into `folder`. texts: the first so many; all of them without it. begin: before each."""
    found = [json.loads(line)["text"] for line in CONTEXTS.read_text("utf-8").splitlines()[:texts]]
    lines = [json.dumps({"text": begin + text}) + "\n" for text in found]
    async with over_http(folder, model) as (client, service):
        sae_id = await service.attach(SAE_FOLDER)
        kind = {"content-type": "application/x-ndjson"}
        kept = (await client.put("/api/texts", content="".join(lines).encode(), headers=kind)).raise_for_status().json()
        asked = {"sae_id": sae_id, "texts": {"texts_id": kept["texts_id"]}, **spec}
        done = await completed(client, "evaluate", asked)
    made: dict[str, Any] = done["summary"]
    return made


async def completed(client: httpx.AsyncClient, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Ask for a run, and wait for its end."""
    body = {"type": "Run", "kind": kind, "spec": spec}
    run_id = (await client.post("/api/commands", json=body)).raise_for_status().json()["run_id"]
    while True:
        run: dict[str, Any] = (await client.get(f"/api/runs/{run_id}")).raise_for_status().json()
        if run["state"] not in ("waiting", "running"):
            assert run["state"] == "completed", run
            return run
        await asyncio.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.demo.evaluating", description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--exclude", nargs="*", default=["sink"])
    given = parser.parse_args()
    model = prepare_model(Path.home() / ".cache" / "sae-actor-tests", lambda *_: None)
    more = {} if given.max_tokens is None else {"max_tokens": given.max_tokens}
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(summary(Path(folder), model, texts=given.texts, exclude=given.exclude, **more))
    del found["density_histogram"]
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
