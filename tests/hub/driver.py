"""A service in miniature, to be killed: runs one download, says how it goes, one JSON object a line.

python -m tests.hub.driver <tmp_path> <hub's url> <repository> <path>
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from sae_actor.errors import SAEError
from sae_actor.hub import HuggingFaceHub
from sae_actor.subscriptions import progress_frame
from tests.hub.conftest import download


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def main(tmp_path: str, url: str, repository_id: str, path: str) -> None:
    environment = {**os.environ, "HF_ENDPOINT": url, "HOME": tmp_path}
    folder = Path(tmp_path) / "data" / "hub"
    hub = HuggingFaceHub(folder, environment=environment, reserve_bytes=0)
    effect = download(repository_id, path or None)
    say(swept=await hub.sweep({effect.sae_id: None}))
    try:
        found = await hub.download(effect, lambda told: say(**progress_frame(told)[1]))
    except SAEError as error:
        say(failed=error.code, reason=error.fields.get("reason"))
    else:
        say(done=[file.path for file in found.files])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
