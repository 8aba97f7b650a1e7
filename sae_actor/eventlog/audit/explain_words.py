"""An event log's generations and edits in words, with nothing but Python's standard library; a part of `explain.py`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

APART = ("model_files", "tokenizer_sha256", "chat_template_sha256", "model_commit", "quantization")
"""Parts of the environment that are told with the model, not with the software."""

Event = dict[str, Any]

plain: Any = None
"""The export's `words.py`, which `explain.py` puts here."""


class Number(float):
    """Remembers how it was written: digests are over the text."""

    text = ""

    @classmethod
    def of(cls, text: str) -> Number:
        made = cls(text)
        made.text = text
        return made


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces, numbers as they were written."""
    if isinstance(value, dict):
        inner = (f"{json.dumps(name, ensure_ascii=False)}:{canonical(value[name])}" for name in sorted(value))
        return "{" + ",".join(inner) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    return value.text if isinstance(value, Number) else json.dumps(value, ensure_ascii=False)


def hook(point: Event) -> str:
    before = {None: "", "gain": " before the gain of its norm", "norm": " before its norm"}[point.get("before")]
    return f"{point['kind']}.{point['layer']}{before}"


def explanation(text: Any) -> Iterator[str]:
    started, finished, began = text.started, text.finished, text.began
    tag = f", tag {started['tag']}" if started and started.get("tag") else ""
    kind = f"{started['kind']}, " if started else ""
    yield f"{text.told('generation_id')}: {kind}requested by {began['principal']}{tag}"
    yield f"began        position {began['position']}, {began['time']}"
    if started is None:
        yield "             the payload of that event was erased; the request is no longer on record"
    yield from _model(text)
    yield from _intervention(text)
    if started is not None:
        yield from _sampling(started)
        yield from tokenization(started.get("tokenization") or {})
    if text.ended is None:
        yield "ended        no end is on record"
    else:
        yield f"ended        position {text.ended['position']}, {text.ended['time']}"
        yield f"  {finished.get('finish_reason')}"
    receipt = finished.get("receipt")
    if receipt is not None:
        yield f"tokens       {receipt['tokens_prompt']} of the prompt, {receipt['tokens_generated']} generated"
        edited, excluded = (plain.ranges_in_words(finished.get(name, ())) for name in ("edited", "excluded"))
        yield f"  written to {receipt['tokens_edited']}, positions {edited}"
        yield f"  excluded   {receipt['tokens_excluded']}, positions {excluded}"
        yield f"  size       mean |difference| / |x| where written to: {receipt['mean_relative_norm']:.4g}"
    for name in ("prompt", "output"):
        if finished.get(f"{name}_sha256"):
            digest = finished[f"{name}_sha256"]
            yield f"  {name:<10} token ids, salted sha256 {digest} (salt {finished['salt']})"
    if finished.get("text") is not None:
        yield f"  text       {finished['text']!r}"


def _model(text: Any) -> Iterator[str]:
    if text.model is None:
        yield "model        the log does not say which one was loaded"
        return
    model, environment = text.model, text.model.get("environment") or {}
    scheme = (environment.get("quantization") or {}).get("scheme")
    yield f"model        {model['model_id']}, {', '.join(filter(None, (scheme, model['dtype'])))} on {model['device']}"
    yield f"  revision   {model['revision']}, commit {model.get('commit') or 'none'}"
    for name, digest in (environment.get("model_files") or {}).items():
        yield f"  file       {name} sha256 {digest}"
    for name in ("tokenizer", "chat_template"):
        if environment.get(f"{name}_sha256"):
            yield f"  {name.replace('chat_', ''):<10} sha256 {environment[f'{name}_sha256']}"
    yield f"  environment sha256 {hashlib.sha256(canonical(environment).encode()).hexdigest()}"
    told = [f"{name} {_plain(value)}" for name, value in environment.items() if name not in APART and value is not None]
    for at in range(0, len(told), 6):
        yield f"  {'software' if at == 0 else '':<10} {', '.join(told[at : at + 6])}"
    yield from since(text.model_since)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else canonical(value)


def _intervention(text: Any) -> Iterator[str]:
    started = text.started
    if started is None:
        yield "intervention not on record: its payload was erased"
        return
    if started.get("baseline"):
        yield "intervention none: the request asked for the baseline"
    elif not text.saes:
        yield "intervention none: no SAE was attached"
    elif started.get("own_steering"):
        yield "intervention the request's own, in place of the server's:"
    else:
        yield "intervention the server's:"
    for each in text.saes:
        yield from _sae(each)


def _sae(found: Event) -> Iterator[str]:
    sae, request = found["sae"], (found["request"] or {}).get("data") or {}
    completed = (found["download"] or {}).get("data") or {}
    out = f", writes at {hook(sae['hook_point_out'])}" if sae.get("hook_point_out") else ""
    yield f"  sae        {sae['sae_id']} at {hook(sae['hook_point'])}{out}, mode {sae.get('mode', 'steer')}"
    if sae.get("mode") == "reconstruct":
        passes = sae.get("exclude")
        if passes is None:
            passes = sorted({each for edit in sae["steering"] for each in edit["exclude"]}) or ["sink"]
        yield f"    passes   {plain.exclusions_in_words(sorted(passes))} through"
    origin = " ".join(str(request[name]) for name in ("repository_id", "path") if request.get(name)) or "unknown"
    kind = (completed.get("sae") or {}).get("architecture") or "unknown architecture"
    dtype = next((each["data"]["dtype"] for each in found["since"] if each["type"] == "AttachRequested"), None)
    yield f"    from     {origin}, commit {completed.get('commit') or 'none'} ({kind}, computes in {dtype})"
    yield f"    weights  sha256 {sae['weights_sha256']}"
    named = completed.get("weights_files") or [
        file for file in completed.get("files", ()) if file["sha256"] == sae["weights_sha256"]
    ]
    yield from (f"    file     {file['path']} sha256 {file['sha256']}" for file in named)
    yield from (f"    edit     {plain.edit_in_words(edit)}" for edit in sae.get("steering", ()))
    if not sae.get("steering"):
        yield "    edit     none"
    yield from since(found["since"], "    ")


def since(events: Iterable[Event], indent: str = "  ") -> Iterator[str]:
    for i, event in enumerate(events):
        label, width = "since" if i == 0 else "", 13 - len(indent)
        where = f"{event['position']:>6}  {event['time']}  {event['type']:<20}  {event['principal']}"
        yield f"{indent}{label:<{width}}{where}"


def tokenization(asked: Event) -> Iterator[str]:
    words = {name: value for name, value in asked.items() if name not in ("chat_template_kwargs", "left_out")}
    variables, left_out = asked.get("chat_template_kwargs") or {}, asked.get("left_out") or ()
    if words:
        yield f"prompt       {_settings(words)}"
    if variables or left_out:
        told = [_settings(variables)] if variables else []
        told += [f"not on record: {', '.join(left_out)}"] if left_out else []
        yield f"{'' if words else 'prompt':<13}template variables {'; '.join(told)}"


def _settings(given: Event) -> str:
    return ", ".join(f"{name} {str(value).lower()}" for name, value in given.items())


def _sampling(started: Event) -> Iterator[str]:
    sampling = started["sampling"]
    temperature, top_p = sampling["temperature"], sampling["top_p"]
    noise = "greedy" if temperature == 0 else f"temperature {temperature:g}, top_p {top_p:g}"
    stop = f", stop at {', '.join(map(repr, sampling['stop']))}" if sampling.get("stop") else ""
    yield f"sampling     {noise}, seed {sampling['seed']}, at most {sampling['max_tokens']} tokens{stop}"
    shown = {"temperature", "top_p", "seed", "max_tokens", "stop"}
    others = [f"{name} {canonical(value)}" for name, value in sampling.items() if name not in shown]
    if others:
        yield f"             {', '.join(others)}"
    stop_when = started.get("stop_when")
    if stop_when:
        feature = f"feature {stop_when['feature']} of {stop_when['sae']['sae_id']}"
        left_out = stop_when.get("exclude")
        but = f", except at {plain.exclusions_in_words(left_out)}" if left_out else ""
        yield f"             until {feature} is above {stop_when['above']:g}{but}"
    if started.get("deterministic"):
        yield "             deterministic: alone on the device"
