"""Scores over HTTP on a real model: equal to plain torch under every method, position, exclusion and mode; recipes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.tiny import save_tiny_sae
from tests.reproducing.making import Recorder

from .over_http import over_http

pytestmark = [pytest.mark.anyio, pytest.mark.model]

LAYER, OTHER = 15, 20
FEATURE = 584
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Tell me about your day."}]
INPUTS: list[dict[str, Any]] = [
    {"prompt": "The capital of France is", "continuation": " Paris, a city of light."},
    {"prompt": "I love this book, and I would read it again."},
    {"messages": CHAT, "continuation": "I am a believer in God."},
]
Mask = Callable[[Tensor, int, set[int], set[int]], Tensor]


class Plain(NamedTuple):
    """The model as transformers has it, and what is known of the SAEs: nothing of the package."""

    model: Any
    tokenizer: Any
    saes: dict[str, tuple[int, dict[str, Tensor]]]
    """Name → layer and weights."""

    def logits(self, ids: Sequence[int], prompt: int, interventions: Sequence[dict[str, Any]], marks: Marks) -> Tensor:
        """[tokens, vocabulary] in float32."""
        handles = [
            self.model.model.layers[layer].register_forward_hook(_hook(weights, each, prompt, marks))
            for each in interventions
            for layer, weights in [self.saes[each["sae_id"]]]
        ]
        try:
            with torch.inference_mode():
                found: Tensor = self.model(input_ids=torch.tensor([list(ids)])).logits[0].float()
        finally:
            for handle in handles:
                handle.remove()
        return found


class Marks(NamedTuple):
    """Positions of a text: special tokens, what the template wrote, and each role's."""

    special: set[int]
    template: set[int]
    roles: dict[str, set[int]]


def _hook(weights: dict[str, Tensor], own: dict[str, Any], prompt: int, marks: Marks) -> Any:
    def change(_: Any, __: Any, output: Any) -> Any:
        x: Tensor = output if isinstance(output, Tensor) else output[0]
        new = _edited(x[0], weights, own, prompt, marks)[None]
        return new if isinstance(output, Tensor) else (new, *output[1:])

    return change


def _edited(x: Tensor, weights: dict[str, Tensor], own: dict[str, Any], prompt: int, marks: Marks) -> Tensor:
    norms = x.norm(dim=-1)
    sinks = norms > 5 * norms[:prompt].median()
    sinks[0] = True
    out = {"sink": set(sinks.nonzero()[:, 0].tolist()), "special": marks.special, "template": marks.template}
    h = x @ weights["W_enc"] + weights["b_enc"]
    acts = torch.where(h > weights.get("threshold", torch.zeros(h.shape[1])).clamp_min(0), h, 0)
    edits = own.get("steering", ())
    held = [_held(edit["positions"], len(x), prompt, marks, [out[each] for each in edit["exclude"]]) for edit in edits]
    if own.get("mode") == "reconstruct":
        for edit, where in zip(edits, held, strict=True):
            a, s = acts[:, edit["feature"]], edit["strength"]
            after = {"add": a + s, "set": torch.full_like(a, s), "scale": s * a, "cap": a.clamp_max(s)}[edit["method"]]
            acts[:, edit["feature"]] = torch.where(where, after, a)
        passed = {at for edit in edits or [{"exclude": ["sink"]}] for each in edit["exclude"] for at in out[each]}
        kept = torch.tensor([at in passed for at in range(len(x))])
        return torch.where(kept[:, None], x, acts @ weights["W_dec"] + weights["b_dec"])
    moved = x
    for edit, where in zip(edits, held, strict=True):
        d, a, s = weights["W_dec"][edit["feature"]], acts[:, edit["feature"]], edit["strength"]
        v = d / d.norm()
        along = x @ v
        amount, direction = {
            "add": (torch.full_like(a, s), d),
            "set": (s - a, d),
            "scale": ((s - 1) * a, d),
            "cap": (a.clamp_max(s) - a, d),
            "project": ((s - 1) * along, v),
            "set_projection": (s - along, v),
        }[edit["method"]]
        moved = moved + torch.where(where[:, None], amount[:, None] * direction, 0)
    return moved


def _held(positions: Any, tokens: int, prompt: int, marks: Marks, out: Sequence[set[int]]) -> Tensor:
    at = torch.arange(tokens)
    if isinstance(positions, dict):
        some = {*positions.get("tokens", ()), *range(positions.get("from", 0), positions.get("to", 0))}
        where = torch.tensor([n in some | marks.roles.get(positions.get("role", ""), set()) for n in range(tokens)])
    else:
        where = {
            "all": at >= 0,
            "prompt": at < prompt,
            "generated": at >= prompt,
            "response": at >= prompt - 1,
            "last_prompt": at == prompt - 1,
        }[positions]
    return where & torch.tensor([not any(n in each for each in out) for n in range(tokens)])


@pytest.fixture(scope="module")
def plain(real_model: Path, demo_sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    other = save_tiny_sae(
        tmp_path_factory.mktemp("other") / "other", d_in=576, d_sae=64, hook=f"blocks.{OTHER}.hook_resid_post"
    )
    files = {str(path): load_file(path / "sae_weights.safetensors") for path in (demo_sae, other)}
    weights = {path: {name: tensor.float() for name, tensor in each.items()} for path, each in files.items()}
    return Plain(
        AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(real_model),
        {path: (layer, each) for (path, each), layer in zip(weights.items(), (LAYER, OTHER), strict=True)},
    )


@pytest.fixture
async def service(
    tmp_path: Path, real_model: Path, plain: Plain
) -> AsyncIterator[tuple[httpx.AsyncClient, Recorder, list[str]]]:
    """With both SAEs attached; their ids."""
    async with over_http(tmp_path / "log", real_model) as (client, recorder):
        yield client, recorder, [await recorder.attach(Path(path)) for path in plain.saes]


async def scored(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    answer = await client.post("/api/score", json=body)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def edit(method: str, strength: float, positions: Any = "all", exclude: Sequence[str] = ("sink",),
         feature: int = FEATURE) -> dict[str, Any]:  # fmt: skip
    return {"feature": feature, "strength": strength, "method": method, "positions": positions, "exclude": [*exclude]}


FIRST: dict[str, list[dict[str, Any]]] = {
    "add": [edit("add", 60.0)],
    "set": [edit("set", 30.0, "generated", ())],
    "scale": [edit("scale", 0.0, exclude=("sink", "special"), feature=74)],
    "cap": [edit("cap", 4.0, "prompt", feature=2220)],
    "project": [edit("project", 0.0, "response")],
    "set_projection": [edit("set_projection", 40.0, "last_prompt", ())],
    "tokens": [edit("add", 50.0, {"tokens": [1, 3]}), edit("scale", 3.0, {"from": 2, "to": 4}, ())],
    "several": [edit("add", 20.0), edit("cap", 1.0, "generated", feature=17), edit("set", 9.0, "prompt", feature=351)],
}


def variants(sae_id: str, other: str) -> dict[str, list[dict[str, Any]]]:
    """Name → interventions."""
    found = {name: [{"sae_id": sae_id, "steering": edits}] for name, edits in FIRST.items()}
    small = [edit("add", 6.0, feature=5), edit("set", 2.0, "generated", feature=7)]
    found["two SAEs"] = [{"sae_id": sae_id, "steering": FIRST["add"]}, {"sae_id": other, "steering": small}]
    found["reconstruct"] = [{"sae_id": sae_id, "mode": "reconstruct"}]
    edited = [edit("add", 25.0, "generated", ("sink", "special")), edit("scale", 0.0, feature=74)]
    found["reconstruct and edit"] = [
        {"sae_id": sae_id, "mode": "reconstruct", "steering": edited},
        {"sae_id": other, "steering": small},
    ]
    return found


def agrees(result: dict[str, Any], logits: Tensor, bare: Tensor, prompt: int) -> None:
    ids = torch.tensor(result["token_ids"])
    logprobs, baseline = logits.log_softmax(dim=-1), bare.log_softmax(dim=-1)
    wanted = logprobs[:-1].gather(1, ids[1:, None])[:, 0]
    assert result["logprobs"][0] is None
    assert result["logprobs"][1:] == pytest.approx(wanted.tolist(), abs=5e-3)
    first, stop = result["scored"]
    assert (first, stop) == (prompt if prompt < len(ids) else 1, len(ids))
    rows = slice(first - 1, stop - 1)
    assert result["sum_logprob"] == pytest.approx(float(wanted[rows].sum()), abs=3e-2)
    assert result["ce"] == pytest.approx(-float(wanted[rows].mean()), abs=5e-3)
    assert result["perplexity"] == pytest.approx(float((-wanted[rows].mean()).exp()), rel=2e-2)
    kl = (baseline.exp() * (baseline - logprobs)).sum(dim=-1)[rows]
    assert result["kl_from_baseline"] == pytest.approx(float(kl.mean()), abs=2e-3, rel=2e-3)
    assert result["is_greedy"] is bool((logits.argmax(dim=-1)[rows] == ids[first:stop]).all())
    for target in result["targets"]:
        assert target["logit"] == pytest.approx(float(logits[-1][target["token_id"]]), abs=1e-2)
        assert target["logprob"] == pytest.approx(float(logprobs[-1][target["token_id"]]), abs=1e-2)
        near = int((logits[-1] > logits[-1][target["token_id"]] + 1e-2).sum())
        far = int((logits[-1] > logits[-1][target["token_id"]] - 1e-2).sum())
        assert near + 1 <= target["rank"] <= far + 1


async def test_scores_are_those_of_plain_torch(
    service: tuple[httpx.AsyncClient, Recorder, list[str]], plain: Plain
) -> None:
    client, recorder, (sae_id, other) = service
    named = dict(zip((sae_id, other), plain.saes, strict=True))
    given = {**variants(sae_id, other), "baseline": []}
    asked = [
        {"name": name, "sae": {"interventions": own} if own else {"baseline": True}} for name, own in given.items()
    ]
    results = await scored(client, inputs=INPUTS, variants=asked, targets=[" the", " God", "."])
    at = iter(results)
    for each in INPUTS:
        prompt = await recorder.engine.tokenize(each.get("messages") or each["prompt"])
        more = plain.tokenizer(each.get("continuation", ""), add_special_tokens=False)["input_ids"]
        ids = [*prompt.token_ids, *more]
        special = {n for n, token in enumerate(ids) if token in plain.tokenizer.all_special_ids}
        marks = Marks(special, set(), {})
        bare = plain.logits(ids, len(prompt.token_ids), [], marks)
        for name, own in given.items():
            result = next(at)
            assert (result["variant"], result["token_ids"]) == (name, ids)
            here = [{**one, "sae_id": named[one["sae_id"]]} for one in own]
            agrees(result, plain.logits(ids, len(prompt.token_ids), here, marks), bare, len(prompt.token_ids))
    alone = await scored(client, inputs=INPUTS[2:], variants=[asked[0]], targets=[" the"])
    together = results[2 * len(given)]
    assert alone[0]["logprobs"][1:] == pytest.approx(together["logprobs"][1:], abs=1e-3)
    assert alone[0]["sae"]["receipt"] == pytest.approx(together["sae"]["receipt"], rel=1e-4)


async def test_roles_and_templates_are_those_of_plain_torch(
    service: tuple[httpx.AsyncClient, Recorder, list[str]], plain: Plain
) -> None:
    client, recorder, (sae_id, _) = service
    read = await recorder.engine.tokenize(CHAT)
    assert read.turns
    roles = {turn.role: set(range(turn.first, turn.stop)) for turn in read.turns}
    said = {n for turn in read.turns for part in turn.said for n in range(*part)}
    prompt = len(read.token_ids)
    edits = {
        "user": [edit("add", 60.0, {"role": "user"})],
        "words": [edit("add", 40.0, "prompt", ("sink", "template"))],
        "others": [edit("set", 20.0, {"role": "system"}, ("template",)), edit("add", 30.0, "generated", ("template",))],
    }
    asked = [{"name": name, "sae": {"interventions": [{"sae_id": sae_id, "steering": own}]}}
             for name, own in edits.items()]  # fmt: skip
    results = await scored(client, inputs=INPUTS[2:], targets=[" the"],
                           variants=[*asked, {"name": "baseline", "sae": {"baseline": True}}])  # fmt: skip
    ids = results[0]["token_ids"]
    marks = Marks(set(), set(range(prompt)) - said, roles)
    bare = plain.logits(ids, prompt, [], marks)
    for result, own in zip(results, edits.values(), strict=False):
        here = [{"sae_id": next(iter(plain.saes)), "steering": own}]
        agrees(result, plain.logits(ids, prompt, here, marks), bare, prompt)


# — recipes —


async def test_ablate_a_feature_and_measure_a_logit_difference(
    service: tuple[httpx.AsyncClient, Recorder, list[str]], plain: Plain
) -> None:
    client, _, (sae_id, _) = service
    ablated = {"sae_id": sae_id, "steering": [{"feature": 74, "strength": 0, "method": "scale"}]}
    answer = await client.post("/api/score", json={
        "inputs": [{"prompt": "I love this book. It is"}],
        "targets": [" great", " bad"],
        "variants": [{"name": "ablated", "sae": {"interventions": [ablated]}},
                     {"name": "baseline", "sae": {"baseline": True}}],
    })  # fmt: skip
    logits = {each["variant"]: [one["logit"] for one in each["targets"]] for each in answer.json()["results"]}
    difference = {name: great - bad for name, (great, bad) in logits.items()}

    ids = plain.tokenizer("I love this book. It is")["input_ids"]
    tokens = [plain.tokenizer(word)["input_ids"][0] for word in (" great", " bad")]
    marks = Marks(set(), set(), {})
    own = [{"sae_id": next(iter(plain.saes)), "steering": [edit("scale", 0.0, feature=74)]}]
    for name, interventions in (("ablated", own), ("baseline", [])):
        great, bad = plain.logits(ids, len(ids), interventions, marks)[-1][tokens].tolist()
        assert difference[name] == pytest.approx(great - bad, abs=5e-3)
    assert abs(difference["ablated"] - difference["baseline"]) > 1e-3


async def test_loss_of_a_continuation_under_five_strengths(
    service: tuple[httpx.AsyncClient, Recorder, list[str]], plain: Plain
) -> None:
    client, _, (sae_id, _) = service
    text = {"prompt": "My day was good because", "continuation": " I believe in God."}
    strengths = (-40, 0, 40, 80, 120)
    variants = [
        {"name": str(s), "sae": {"interventions": [{"sae_id": sae_id, "steering": [{"feature": 584, "strength": s}]}]}}
        for s in strengths
    ]
    answer = await client.post("/api/score", json={"inputs": [text], "variants": variants})
    loss = {each["variant"]: each["ce"] for each in answer.json()["results"]}

    ids, more = (plain.tokenizer(text[name])["input_ids"] for name in ("prompt", "continuation"))
    for s in strengths:
        own = [{"sae_id": next(iter(plain.saes)), "steering": [edit("add", float(s))]}]
        logits = plain.logits([*ids, *more], len(ids), own, Marks(set(), set(), {}))[len(ids) - 1 : -1]
        wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(more))
        assert loss[str(s)] == pytest.approx(float(wanted), abs=5e-3)
    assert min(loss, key=loss.__getitem__) in ("40", "80")
