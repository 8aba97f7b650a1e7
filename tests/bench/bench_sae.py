"""An SAE's whole pass against its dense formula, the encoder's product alone and, if given, sae-lens.

    python -m tests.bench.bench_sae [--sae-lens PYTHON] [--d-in 2304] [--d-sae 16384] [--l0 64] [--rounds 9]

`--sae-lens` is the interpreter of an environment with sae-lens; it reads the same folder and is measured in turn,
so that other work on the machine meets all of them alike. Prints the fastest of the rounds in milliseconds and the
ratios; then what attaching costs in time and memory, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from sae_actor.domain.refs import Edit
from sae_actor.sae import SAE, Steering, load_sae

THEIRS = """
import json, sys, time, torch, warnings
warnings.filterwarnings("ignore")
from sae_lens import SAE
folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
saes, inputs = {}, {}
print("ready", flush=True)
for line in sys.stdin:
    dtype, tokens, repeats = json.loads(line)
    kind = getattr(torch, dtype)
    if dtype not in saes:
        saes.clear()
        saes[dtype] = SAE.load_from_disk(folder, device="cpu").to(kind)
    sae = saes[dtype]
    x = torch.randn(tokens, sae.cfg.d_in, generator=torch.Generator().manual_seed(tokens)).to(kind)
    best = float("inf")
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            sae(x)
            best = min(best, time.perf_counter() - start)
    print(json.dumps(best), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sae-lens", metavar="PYTHON")
    parser.add_argument("--d-in", type=int, default=2304)
    parser.add_argument("--d-sae", type=int, default=16384)
    parser.add_argument("--l0", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 512])
    parser.add_argument("--attach", choices=["read", "mapped"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.attach:
        attach(asked.folder, asked.attach)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = write(Path(scratch) / "sae", asked.d_in, asked.d_sae, asked.l0)
        passes(folder, asked)
        wide = write(Path(scratch) / "wide", 512, 65_536, asked.l0)
        for kind, path in (("read", folder), ("mapped", wide)):
            command = [sys.executable, "-m", "tests.bench.bench_sae", "--attach", kind, "--folder", str(path)]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="")


def write(folder: Path, d_in: int, d_sae: int, l0: int) -> Path:
    """A JumpReLU SAE in float32 of which about `l0` features fire for standard normal inputs."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    threshold = math.sqrt(2) * torch.erfinv(torch.tensor(1 - 2 * l0 / d_sae, dtype=torch.float64)).float()
    tensors = {
        "W_enc": torch.randn(d_in, d_sae) / math.sqrt(d_in),
        "b_enc": torch.zeros(d_sae),
        "W_dec": torch.nn.functional.normalize(torch.randn(d_sae, d_in), dim=1),
        "b_dec": torch.zeros(d_in),
        "threshold": threshold.expand(d_sae).contiguous(),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {"architecture": "jumprelu", "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu"}
    config |= {"apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none"}
    meta = {"sae_lens_version": "6.0.0", "hook_name": "blocks.12.hook_resid_post", "model_name": "gemma-2-2b"}
    (folder / "cfg.json").write_text(json.dumps(config | {"metadata": meta}))
    return folder


def passes(folder: Path, asked: argparse.Namespace) -> None:
    theirs = None if asked.sae_lens is None else Theirs(asked.sae_lens, folder, asked.threads)
    names = ["sae", "dense", "encoder", *(["sae-lens"] if theirs else [])]
    head = "".join(f"{name:>11}" for name in names)
    ratios = ["dense/sae", "sae/encoder", *(["sae-lens/sae"] if theirs else [])]
    print(f"d_in {asked.d_in}, d_sae {asked.d_sae}, {asked.threads} threads; ms\n")
    print(f"{'dtype':>9}{'tokens':>7}{'L0':>6}{head}" + "".join(f"{name:>14}" for name in ratios))
    for dtype in ("float32", "bfloat16"):
        sae = load_sae(folder, dtype=dtype)
        for tokens in asked.tokens:
            x = torch.randn(tokens, asked.d_in, generator=torch.Generator().manual_seed(tokens)).to(sae.dtype)
            runs = ours(sae, x)
            torch.testing.assert_close(runs["sae"](), runs["dense"](), rtol=0.05, atol=0.05)
            repeats = max(1, 32 // tokens)
            best = dict.fromkeys(names, math.inf)
            for _ in range(asked.rounds):
                for name, run in runs.items():
                    best[name] = min(best[name], fastest(run, repeats))
                if theirs:
                    best["sae-lens"] = min(best["sae-lens"], theirs.fastest(dtype, tokens, repeats))
            shown = [best["dense"] / best["sae"], best["sae"] / best["encoder"]]
            shown += [best["sae-lens"] / best["sae"]] if theirs else []
            l0 = float((sae.encode(x) != 0).sum(dim=1).float().mean())
            times = "".join(f"{best[name] * 1e3:11.2f}" for name in names)
            print(f"{dtype:>9}{tokens:7d}{l0:6.0f}{times}" + "".join(f"{ratio:14.2f}" for ratio in shown), flush=True)
    print()


def ours(sae: SAE, x: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """The package's pass, the formula with nothing left out, and its first product."""
    b_enc, threshold = sae.weights["b_enc"], sae.weights["threshold"]

    def dense() -> torch.Tensor:
        h = x @ sae.W_enc + b_enc  # [n, d_sae]
        return (torch.relu(h) * (h > threshold)) @ sae.W_dec + sae.b_dec

    return {"sae": lambda: sae(x), "dense": dense, "encoder": lambda: x @ sae.W_enc}


def fastest(run: Callable[[], torch.Tensor], repeats: int) -> float:
    best = math.inf
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
    return best


class Theirs:
    """sae-lens in its own environment, one answer a line."""

    def __init__(self, python: str, folder: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [python, "-c", THEIRS, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._line()

    def fastest(self, dtype: str, tokens: int, repeats: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([dtype, tokens, repeats]) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._line()))

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the interpreter given as --sae-lens ended; does it have sae-lens?")
        return line


def attach(folder: Path, kind: str) -> None:
    """Load in this process, alone: time, and memory above what was there before beside the SAE's own bytes."""
    torch.randn(64, 64) @ torch.randn(64, 64)  # thread pools and code pages
    Steering.prepare(load_sae(write(Path(tempfile.mkdtemp()) / "small", 16, 64, 4)), [Edit(1, 2.0)])
    before = peak_bytes()
    start = time.perf_counter()
    sae = load_sae(folder, mapped=kind == "mapped")
    Steering.prepare(sae, [Edit(7, 10.0), Edit(sae.spec.d_sae - 1, 0.0, "project")])
    spent = (time.perf_counter() - start) * 1e3
    grown = peak_bytes() - before
    what = f"{kind}, d_in {sae.spec.d_in}, d_sae {sae.spec.d_sae}, {sae.nbytes / 2**20:.0f} MiB"
    print(f"attach for add and project, {what}: {spent:.1f} ms, peak {grown / sae.nbytes:.3f} of its bytes")


def peak_bytes() -> int:
    """High-water mark of this program's memory; getrusage's is that of the parent too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
