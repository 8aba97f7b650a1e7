"""`log explain --methods`: a paragraph with all that it takes to reproduce an answer, and what to cite."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ...domain.words import exclusions_in_words
from ...eventlog.audit.explain_words import APART
from .answers import hook, plain
from .citations import entries

View = dict[str, Any]

_NEUTRAL: View = {
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "frequency_penalty": 0.0,
    "presence_penalty": 0.0, "min_tokens": 0, "ignore_eos": False, "include_stop_str_in_output": False,
    "skip_special_tokens": True,
}  # fmt: skip


def methods(view: View) -> View:
    """`{"generation_id", "methods", "bibtex"}`"""
    return {"generation_id": view["generation_id"], "methods": _text(view), "bibtex": entries(view)}


def paragraph(view: View) -> str:
    """The same for a person."""
    told = methods(view)
    return plain("\n\n".join([told["methods"], *told["bibtex"]]))


def _text(view: View) -> str:
    return " ".join(
        (
            *_model(view["model"]),
            *_intervention(view),
            *_prompt(view),
            *_sampling(view),
            *_software(view["model"]),
            *_class(view),
            *_evidence(view),
        )
    )


def _model(model: View | None) -> Iterator[str]:
    if model is None:
        yield "The log does not say which model was loaded."
        return
    where = f"revision {model['revision']}, commit {model['commit']}" if model["commit"] else "local files"
    held = f", quantised ({model['quantization']})" if model["quantization"] else ""
    yield f"The text was generated with {model['model_id']} ({where}) in {model['dtype']}{held} on {model['device']}."
    files = [f"{name} {digest}" for name, digest in (model["files"] or {}).items()]
    if files:
        yield f"The sha256 of its files: {'; '.join(files)}."
    digests = [f"{name.replace('_', ' ')} {model[f'{name}_sha256']}" for name in ("tokenizer", "chat_template")
               if model[f"{name}_sha256"]]  # fmt: skip
    if digests:
        yield f"Further sha256: {', '.join(digests)}."


def _intervention(view: View) -> Iterator[str]:
    if view["baseline"]:
        yield "No intervention was active: the request asked for the baseline."
        return
    if not view["intervention"]:
        yield "No sparse autoencoder (SAE) was attached."
        return
    for sae in view["intervention"]:
        yield from _sae(sae)
    if any(edit["exclude"] for sae in view["intervention"] for edit in sae["steering"]):
        window = view["sink_window"]
        yield (
            "Token positions count from 0. An attention sink is the first token, and any position whose norm at the "
            "hook point is above 5 times the median norm of the prompt"
            f"{f', of its first {window} positions if it has more' if window else ''}."
        )
    yield f"The sha256 of the intervention (canonical JSON) is {view['intervention_sha256']}."


def _sae(sae: View) -> Iterator[str]:
    origin = " ".join(str(sae[name]) for name in ("repository_id", "path") if sae[name]) or "unknown origin"
    where = f"revision {sae['revision']}, commit {sae['commit']}" if sae["commit"] else "no commit on record"
    files = "; ".join(f"{file['path']} {file['sha256']}" for file in sae["weights_files"])
    yield (
        f"The SAE {sae['sae_id']} ({origin}, {where}; format {sae['format'] or 'unknown'}, architecture "
        f"{sae['architecture'] or 'unknown'}; sha256 of its weights {sae['weights_sha256']}"
        f"{f', files {files}' if files else ''}) read at hook point {hook(sae['hook_point'])} and wrote at "
        f"{hook(sae['hook_point_out'] or sae['hook_point'])} in mode {sae['mode']}, computing in {sae['dtype']}."
    )
    if sae["passes"] is not None:
        yield f"Its reconstruction passed {exclusions_in_words(sae['passes'])} through."
    if sae["steering"]:
        yield f"Its edits: {'; '.join(edit['words'] for edit in sae['steering'])}."
        if all(edit["unit"] == "raw" for edit in sae["steering"]):
            yield "Strengths are resolved to raw units: they multiply the decoder row as it lies in the weights."
    else:
        yield "It had no edits."


def _prompt(view: View) -> Iterator[str]:
    asked = view["tokenization"] or {}
    told = [f"{name} {str(value).lower()}" for name, value in asked.items()]
    how = f"with {', '.join(told)}" if told else "as the tokenizer does by default"
    if view["kind"] == "chat" and not told:
        how = "with the model's chat template"
    count = view["tokens_prompt"]
    yield f"The prompt{'' if count is None else f' of {count} tokens'} was tokenised {how}."
    if view["prompt_sha256"]:
        yield (
            f"Salted sha256 of its token ids (little-endian, 4 bytes each) {view['prompt_sha256']}, of those "
            f"generated {view['output_sha256'] or 'none'}, salt {view['salt']}."
        )


def _sampling(view: View) -> Iterator[str]:
    sampling = view["sampling"]
    if sampling is None:
        yield "The sampling is not on record."
        return
    noise = "greedily" if sampling["temperature"] == 0 else f"at temperature {sampling['temperature']:g}"
    shown = {"temperature", "seed", "max_tokens"}
    others = [_told(name, value) for name, value in sampling.items() if name not in shown and _matters(name, value)]
    more = f"; {', '.join(others)}" if others else ""
    yield f"Tokens were chosen {noise} with seed {sampling['seed']}, at most {sampling['max_tokens']}{more}."
    if sampling["temperature"] != 0:
        yield "The noise depends on the seed and the index of the token alone, not on what else ran."
    receipt = view["receipt"]
    if receipt is not None:
        yield (
            f"{receipt['tokens_generated']} tokens were generated ({view['finish_reason']}); "
            f"{receipt['tokens_edited']} positions were written to, {receipt['tokens_excluded']} excluded, with a mean "
            f"relative norm of {receipt['mean_relative_norm']:.4g}."
        )


def _software(model: View | None) -> Iterator[str]:
    if model is None:
        return
    told = environment_in_words(model["environment"])
    yield f"Software and device: {', '.join(told)}; sha256 of the whole {model['environment_sha256']}."


def environment_in_words(environment: View) -> Sequence[str]:
    """`torch 2.13.0` and so on; not what is told with the model."""
    return [_told(name, value) for name, value in environment.items() if name not in APART and value is not None]


def _told(name: str, value: Any) -> str:
    return f"{name} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def _matters(name: str, value: Any) -> bool:
    """Whether a setting of the sampling is another than the neutral one."""
    return value != _NEUTRAL.get(name, False) and value not in (None, [], ())


def _class(view: View) -> Iterator[str]:
    model = view["model"]
    if view["deterministic"]:
        yield "Reproducibility: deterministic; alone on the device, the same environment gives the same tokens."
    elif model is not None and model["dtype"] == "float32" and model["quantization"] is None:
        yield "Reproducibility: float32; the same request, seed and environment give the same tokens."
    else:
        batch = view["batch"]
        shared = f" (it shared its steps with up to {batch[1] - 1} others)" if batch and batch[1] > 1 else ""
        yield (
            "Reproducibility: up to near-ties; rounding may choose another of two tokens whose logits are almost the "
            f"same, depending on the batch{shared}."
        )


def _evidence(view: View) -> Iterator[str]:
    head = view["log"]["head"]
    agrees = "agrees" if view["digest"]["agrees"] else "does NOT agree"
    yield (
        f"On record as {view['generation_id']}, event {view['position']} of a log with head {head['position']} "
        f"{head['hash']}; the recorded digest of the intervention {agrees} with the record."
    )
