"""Every family and hook kind, all the way through the engine, as a table (`pytest -s` prints it, failed rows included).

An SAE whose features are the coordinates, each with both signs, reads and reconstructs an activation bit for bit. What
it reads is compared with transformers' own hidden states where there are some, else with a plain hook on a model that
nothing of the engine has touched; the tokens under it, with those of the bare model; the tokens of an edit, with those
of that model with a plain hook that adds the same. Each alone, and four texts at once.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from sae_actor.domain.refs import Edit, HookKind, HookPoint
from sae_actor.engine import EngineSettings, TorchEngine
from sae_actor.engine.decoding.recurrent import CACHE_ARGUMENTS
from sae_actor.engine.interventions.hook_points import Architecture
from sae_actor.errors import SAEIncompatibleError
from sae_actor.ports import Token, Watch
from tests.engine.asking import active, attach, detach, load, no_progress, read, request
from tests.engine.blocks import ALL, IN_TURN, LACKS, VARIANTS
from tests.engine.interventions.test_hook_points import KINDS
from tests.engine.tiny import LAYERS, save_tiny_model

pytestmark = pytest.mark.anyio

PROMPT = (5, 77, 200, 31, 8, 8, 119)
OTHER = (41, 3, 250)
TOKENS = 4
FEATURE, STRENGTH = 6, 3.0
ROUNDING = 1e-4
"""Of the largest value, where texts share a step: its products are summed in another order."""
COLUMNS = "{:22} {:11} {:>5}  {:8} {:>9}  {:9} {:9} {}"


class Row(NamedTuple):
    variant: str
    kind: HookKind
    layer: int | None
    steps: str
    reading: float | None
    identity: str
    added: str
    note: str = ""

    def failed(self, limit: float) -> bool:
        off = self.reading is not None and not self.reading <= limit
        return off or "differs" in (self.identity, self.added) or self.note.startswith("FAILED")

    def __str__(self) -> str:
        reading = "" if self.reading is None else "equal" if self.reading == 0 else f"{self.reading:.0e}"
        return COLUMNS.format(
            self.variant, self.kind, "" if self.layer is None else self.layer, self.steps, reading, self.identity,
            self.added, self.note,
        ).rstrip()  # fmt: skip


@pytest.fixture(scope="module")
def table() -> Iterator[list[Row]]:
    rows: list[Row] = []
    yield rows
    print("\n" + COLUMNS.format("family", "kind", "layer", "steps", "reading", "identity", "add", ""))
    print(*rows, sep="\n")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The identity SAE of a width: features 2i and 2i + 1 are x_i and −x_i."""
    root = tmp_path_factory.mktemp("identity")

    def made(width: int) -> Path:
        folder = root / str(width)
        if not folder.exists():
            folder.mkdir()
            rows = torch.stack([torch.eye(width), -torch.eye(width)], dim=1).reshape(2 * width, width)
            zeros = {"b_enc": torch.zeros(2 * width), "b_dec": torch.zeros(width)}
            save_file({"W_enc": rows.T.contiguous(), "W_dec": rows, **zeros}, folder / "sae_weights.safetensors")
            settings = {"architecture": "standard", "d_in": width, "d_sae": 2 * width, "dtype": "float32",
                        "apply_b_dec_to_input": False, "normalize_activations": "none"}  # fmt: skip
            (folder / "cfg.json").write_text(json.dumps(settings))
        return folder

    return made


class Plain:
    """transformers' own model, token by token. From the same files: where a tensor begins in memory changes the last
    bits of products with it."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        # transformers 5.16 chooses an implementation for it that drops Gemma 2's cap on scores.
        if getattr(self.model.config, "attn_logit_softcapping", None) is not None:
            self.model.set_attn_implementation("eager")
        self.architecture = Architecture(self.model, self.model.config)
        taken = inspect.signature(self.model.forward).parameters
        self.cache = next(name for name in CACHE_ARGUMENTS if name in taken)

    @torch.inference_mode()
    def run(self, prompt: tuple[int, ...]) -> tuple[tuple[int, ...], list[Tensor]]:
        """Greedy tokens; the hidden states of every position that was run."""
        fed, cache, made, states = torch.tensor([prompt]), None, [], []
        for _ in range(TOKENS):
            out = self.model(fed, use_cache=True, output_hidden_states=True, **{self.cache: cache})
            cache = out[self.cache]
            states.append(out.hidden_states)
            fed = out.logits[:, -1:].argmax(-1)
            made.append(int(fed))
        return tuple(made), [torch.cat([each[at].flatten(0, -3)[0] for each in states]) for at in range(LAYERS + 1)]

    @contextmanager
    def hooked(self, point: HookPoint, difference: Tensor | None = None) -> Iterator[list[Tensor]]:
        """What passes that point; maybe with `difference` added."""
        seen: list[Tensor] = []

        def hook(x: Tensor) -> Tensor | None:
            seen.append(x.reshape(-1, x.shape[-1]).clone())
            return None if difference is None else x + difference

        handle = self.architecture.hook(point).install(hook)
        yield seen
        handle.remove()


def _read(tokens: list[Token], width: int) -> Tensor:
    """[positions, width], from the activations of the identity SAE."""
    rows = [row for token in tokens for row in token.activations[0].rows]
    x = torch.zeros(len(rows), width)
    for at, row in enumerate(rows):
        for each in row:
            x[at, each.feature // 2] += each.activation if each.feature % 2 == 0 else -each.activation
    return x


@asynccontextmanager
async def _running(variant: str, folder: Path) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(EngineSettings(threads=1))
    facts = await engine.load_model(load(str(folder)), no_progress)
    assert facts.in_turn == IN_TURN.get(variant)
    assert facts.environment["batching"] is (variant not in IN_TURN)
    try:
        yield engine
    finally:
        await engine.close()


@pytest.mark.parametrize("variant", list(VARIANTS))
async def test_every_kind_of_a_family(
    variant: str, tmp_path: Path, folder_of: Callable[[int], Path], table: list[Row]
) -> None:
    model_type, config = VARIANTS[variant]
    folder = save_tiny_model(tmp_path / "model", model_type, **config)
    plain, rows = Plain(folder), []
    async with _running(variant, folder) as engine:
        for kind in KINDS:
            lacking = LACKS.get(variant, {}).get(kind, ())
            layer = next((each for each in (1, 2, 0) if each not in lacking), None)
            if layer is None:
                rows.append(_refused(variant, kind, plain))
                continue
            try:
                row = await _row(engine, variant, plain, HookPoint(kind, layer), folder_of)
            except Exception as error:  # a row of the table, like all others
                row = Row(variant, kind, layer, "", None, "", "", f"FAILED: {type(error).__name__}: {error}"[:200])
            rows.append(row._replace(note=f"not at {lacking}") if lacking and not row.note else row)
    table.extend(rows)
    limit = 0.0 if variant in IN_TURN else ROUNDING
    assert [row for row in rows if row.failed(limit)] == []


def _refused(variant: str, kind: HookKind, plain: Plain) -> Row:
    """A kind that no layer has."""
    for layer in ALL:
        with pytest.raises(SAEIncompatibleError) as caught:
            plain.architecture.hook(HookPoint(kind, layer))
        assert plain.architecture.without[kind] in caught.value.detail
    return Row(variant, kind, None, "", None, "", "", f"none: {plain.architecture.without[kind]}")


async def _row(
    engine: TorchEngine, variant: str, plain: Plain, point: HookPoint, folder_of: Callable[[int], Path]
) -> Row:
    at, width = 5, plain.architecture.hook(point).width
    difference = torch.zeros(width)
    difference[FEATURE // 2] = STRENGTH
    with plain.hooked(point) as seen:
        bare, states = plain.run(PROMPT)
    other, _ = plain.run(OTHER)
    with plain.hooked(point, difference):
        added, _ = plain.run(PROMPT)
    expected = torch.cat(seen)
    wanted = {"resid_pre": states[point.layer], "resid_post": states[point.layer + 1]}.get(point.kind, expected)
    if point.layer + 1 < LAYERS:  # the last of the hidden states is behind the final norm
        assert torch.equal(wanted, expected)

    await engine.attach(attach(at, point=point, d_in=width, d_sae=2 * width), str(folder_of(width)))
    identity = active(at, point=point, mode="reconstruct", exclude=())
    edit = active(at, Edit(feature=FEATURE, strength=STRENGTH, exclude=()), point=point)
    watch = Watch(sae=active(at, point=point, exclude=()), top_k=2 * width)
    asked = [
        request(PROMPT, tokens=TOKENS, watched=(watch,), ignore_eos=True),
        request(PROMPT, identity, tokens=TOKENS, ignore_eos=True),
        request(PROMPT, edit, tokens=TOKENS, ignore_eos=True),
    ]
    alone = [await read(engine.generate(each)) for each in asked]
    beside = request(OTHER, tokens=TOKENS, ignore_eos=True)
    *together, another = await asyncio.gather(*(read(engine.generate(each)) for each in (*asked, beside)))
    await engine.detach(detach(at), 0.0)
    difference_read = max(
        float((_read(tokens, width) - expected).abs().max() / expected.abs().max())
        for tokens, _ in (alone[0], together[0])
    )
    read_alone, identical, moved = [[end.token_ids for _, end in ends] for ends in zip(alone, together, strict=True)]
    assert read_alone == [bare, bare], "the tokens of a text that is read differ"
    assert another[1].token_ids == other, "the tokens of the text beside differ"
    return Row(
        variant,
        point.kind,
        point.layer,
        "in turn" if variant in IN_TURN else "batched",
        difference_read,
        "equal" if identical == [bare, bare] else "differs",
        "equal" if moved == [added, added] else "differs",
    )
