"""Download rate with verification against plain huggingface_hub without, in turns, from the same fake hub.

    python -m tests.bench.bench_hub [megabytes]

Both run in a process of their own, and their start is counted.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fakes.hub_server import HubServer
from tests.hub.build import sae_files
from tests.hub.conftest import Told, download, real_hub

ROUNDS = 5
PLAIN = """
import sys
from huggingface_hub import hf_hub_download
for path in sys.argv[2:]:
    hf_hub_download("org/saes", path, cache_dir=sys.argv[1])
"""


def plain(server: HubServer, folder: Path, paths: list[str]) -> float:
    environment = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", PLAIN, str(folder), *paths], env=environment, cwd="/", check=True)
    return time.monotonic() - start


def verified(server: HubServer, folder: Path) -> float:
    hub = real_hub(server, folder)
    start = time.monotonic()
    asyncio.run(hub.download(download(), Told()))
    return time.monotonic() - start


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    files = sae_files(d_in=1024, d_sae=megabytes * 122)
    size = sum(map(len, files.values()))
    ratios = []
    with HubServer() as server:
        server.publish("org/saes", files)
        for content in files.values():
            server.digests(content)
        for _ in range(ROUNDS):
            folder = Path(tempfile.mkdtemp())
            try:
                theirs, ours = plain(server, folder / "plain", list(files)), verified(server, folder)
            finally:
                shutil.rmtree(folder)
            ratios.append(theirs / ours)
            print(f"plain {size / theirs / 1e6:6.0f} MB/s   verified {size / ours / 1e6:6.0f} MB/s   {ratios[-1]:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f} over {ROUNDS} rounds of {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
