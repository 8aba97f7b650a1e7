"""One answer in plain words: what was active for it, since which events, and whether the digests agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...domain.words import exclusions_in_words, ranges_in_words
from ...eventlog.audit.explain_words import since, tokenization
from .answers import hook, plain
from .methods import environment_in_words

View = dict[str, Any]

_REASONS = {
    "stop": "it reached its end or a stop string",
    "length": "it reached the requested length",
    "feature": "the feature of stop_when was above its threshold",
    "intervention_removed": "an SAE that it ran under was detached",
    "cancelled": "no client was reading it any more",
    "error": "it failed",
    "interrupted": "the service stopped before it was done",
}


def explanation(view: View) -> str:
    """`explaining.explain` with `log`, the verification it rests on, for a person."""
    lines = [
        *_beginning(view),
        *_model(view["model"]),
        *_intervention(view),
        *_sampling(view),
        *tokenization(view["tokenization"] or {}),
        *_end(view),
        *_evidence(view),
    ]
    return plain("\n".join(lines))


def _beginning(view: View) -> Iterator[str]:
    started = view["started"]
    kind = f"{view['kind']}, " if view["kind"] else ""
    tag = f", tag {view['tag']}" if view["tag"] else ""
    yield f"{view['generation_id']}: {kind}requested by {view['principal']}{tag}"
    yield f"began        position {started['position']}, {started['time']}"
    if view["erased"]:
        yield "             the payload of that event was erased; the request is no longer on record"
    elif not view["readable"]:
        yield "             this version cannot read the payload of that event; the request is not shown"


def _model(model: View | None) -> Iterator[str]:
    if model is None:
        yield "model        the log does not say which one was loaded"
        return
    held = ", ".join(filter(None, (model.get("quantization"), model["dtype"])))
    yield f"model        {model['model_id']}, {held} on {model['device']}"
    yield f"  revision   {model['revision']}, commit {model['commit'] or 'none'}"
    yield from (f"  file       {name} sha256 {digest}" for name, digest in (model["files"] or {}).items())
    for name in ("tokenizer", "chat_template", "environment"):
        if model[f"{name}_sha256"]:
            yield f"  {name.replace('chat_', ''):<10} sha256 {model[f'{name}_sha256']}"
    told = environment_in_words(model["environment"])
    for at in range(0, len(told), 6):
        yield f"  {'software' if at == 0 else '':<10} {', '.join(told[at : at + 6])}"
    yield from since(model["since"])


def _intervention(view: View) -> Iterator[str]:
    saes: Sequence[View] = view["intervention"]
    if view["baseline"]:
        attached = ", ".join(view["attached"]) or "nothing"
        yield f"intervention none: the request asked for the baseline (attached was {attached})"
    elif not view["readable"]:
        yield "intervention the server's, as it was when the generation began:" if saes else (
            "intervention the server had none when the generation began"
        )  # fmt: skip
    elif not saes:
        preset = view["preset"]
        why = f"the preset {preset['name']} has none" if preset else "no SAE was attached"
        yield f"intervention none: {why}"
    elif view["preset"]:
        yield f"intervention the preset {view['preset']['name']}, saved at position {view['preset']['position']}:"
    elif view["own_steering"]:
        yield "intervention the request's own, in place of the server's:"
    else:
        yield "intervention the server's:"
    for sae in saes:
        yield from _sae(sae)


def _sae(sae: View) -> Iterator[str]:
    out = f", writes at {hook(sae['hook_point_out'])}" if sae["hook_point_out"] else ""
    yield f"  sae        {sae['sae_id']} at {hook(sae['hook_point'])}{out}, mode {sae['mode']}"
    if sae["passes"] is not None:
        yield f"    passes   {exclusions_in_words(sae['passes'])} through"
    source = [str(sae[name]) for name in ("repository_id", "path") if sae[name]]
    origin = f"{' '.join(source) or 'unknown'}, commit {sae['commit'] or 'none'}"
    yield f"    from     {origin} ({sae['architecture'] or 'unknown architecture'}, computes in {sae['dtype']})"
    yield f"    weights  sha256 {sae['weights_sha256']}"
    yield from (f"    file     {file['path']} sha256 {file['sha256']}" for file in sae["weights_files"])
    yield from (f"    edit     {edit['words']}" for edit in sae["steering"])
    if not sae["steering"]:
        why = "the server's steering was switched off" if sae["steering_enabled"] is False else "nothing was steered"
        yield f"    edit     none: {why}"
    yield from since(sae["since"], "    ")


def _sampling(view: View) -> Iterator[str]:
    sampling = view["sampling"]
    if sampling is None:
        return
    if view["kind"] != "score":
        yield from _settings_of(sampling)
    if reasoning := view["reasoning"]:
        marks = "channels" if reasoning["format"] == "channels" else f"{reasoning['begin']} and {reasoning['end']}"
        yield f"             reasoning marked by {marks}"
    if view["stop_when"]:
        stop_when = view["stop_when"]
        feature = f"feature {stop_when['feature']} of {stop_when['sae_id']}"
        but = f", except at {exclusions_in_words(stop_when['exclude'])}" if stop_when["exclude"] else ""
        yield f"             until {feature} is above {stop_when['above']:g}{but}"
    if view["deterministic"]:
        yield "             deterministic: alone on the device"
    if view["watched"]:
        yield f"             activations reported for {', '.join(view['watched'])}"


def _settings_of(sampling: View) -> Iterator[str]:
    noise = "greedy" if sampling["temperature"] == 0 else (
        f"temperature {sampling['temperature']:g}, top_p {sampling['top_p']:g}"
    )  # fmt: skip
    stop = f", stop at {', '.join(map(repr, sampling['stop']))}" if sampling["stop"] else ""
    yield f"sampling     {noise}, seed {sampling['seed']}, at most {sampling['max_tokens']} tokens{stop}"
    yield from (f"             {line}" for line in (*_choice(sampling), *_ends(sampling)))


def _choice(sampling: View) -> Iterator[str]:
    """What of the choice of tokens differs from the usual."""
    among = [f"{name} {sampling[name]:g}" for name in ("top_k", "min_p") if sampling[name]]
    if among:
        yield f"of the probable tokens alone: {', '.join(among)}"
    penalties = {"repetition_penalty": 1, "frequency_penalty": 0, "presence_penalty": 0}
    changed = [f"{name} {sampling[name]:g}" for name, neutral in penalties.items() if sampling[name] != neutral]
    if changed:
        yield ", ".join(changed)
    if sampling["logit_bias"]:
        yield f"logits of {len(sampling['logit_bias'])} tokens were raised or lowered"
    form = sampling["response_format"]
    if form is not None:
        schema = f" of the schema with sha256 {form['schema_sha256']}" if form["schema_sha256"] else ", any object"
        yield f"the text is JSON{schema}"


def _ends(sampling: View) -> Iterator[str]:
    """What of the ways to end differs from the usual."""
    if sampling["stop_token_ids"]:
        yield f"stop at token {', '.join(map(str, sampling['stop_token_ids']))}"
    if sampling["stop"] and not sampling["stop_in_hidden"]:
        yield "stop strings were searched in the text only, without special tokens"
    if sampling["include_stop_str_in_output"]:
        yield "the stop string is part of the text"
    if sampling["ignore_eos"]:
        yield "the model's end tokens were ignored"
    if sampling["min_tokens"]:
        yield f"at least {sampling['min_tokens']} tokens"
    if not sampling["skip_special_tokens"]:
        yield "special tokens are part of the text"


_LEFT_OUT = {"prompt_token_ids": "the prompt", "output_token_ids": "the answer's tokens", "text": "its text"}


def _end(view: View) -> Iterator[str]:
    finished, receipt = view["finished"], view["receipt"]
    if finished is None:
        yield "ended        no end is on record"
        return
    reason = view["finish_reason"]
    yield f"ended        position {finished['position']}, {finished['time']}"
    why = _REASONS.get(reason, "for a reason that this version does not know")
    yield f"  {reason}: {'all of it was run' if view['score'] else why}"
    if view["error"]:
        yield f"  error      {view['error']['detail']} ({view['error']['code']})"
    if receipt is None:
        counted = "" if view["tokens_prompt"] is None else f"{view['tokens_prompt']} of the prompt; "
        yield f"tokens       {counted}no receipt: the number generated is not on record"
    else:
        made = "of its continuation" if view["kind"] == "score" else "generated"
        yield f"tokens       {receipt['tokens_prompt']} of the prompt, {receipt['tokens_generated']} {made}"
        yield f"  written to {receipt['tokens_edited']}, positions {ranges_in_words(view['edited'])}"
        yield f"  excluded   {receipt['tokens_excluded']}, positions {ranges_in_words(view['excluded'])}"
        yield f"  size       mean |difference| / |x| where written to: {receipt['mean_relative_norm']:.4g}"
    if view["score"]:
        yield from _score(view["score"])
    for name in ("prompt", "output"):
        if view[f"{name}_sha256"]:
            yield f"  {name:<10} token ids, salted sha256 {view[f'{name}_sha256']} (salt {view['salt']})"
    if view["text"] is not None:
        yield f"  text       {view['text']!r}"
    if view["left_out"]:
        names = " and ".join(_LEFT_OUT.get(each, each) for each in view["left_out"]["fields"].get("left_out", ()))
        yield f"  left out   {names}: {view['left_out']['detail']}"


def _score(score: View) -> Iterator[str]:
    greedy = "each of them the most probable one" if score["is_greedy"] else "not each of them the most probable one"
    yield f"score        {score['counted']} tokens counted, {greedy}"
    yield f"  logprobs   sum {score['sum_logprob']:.6g}"
    if score["kl_from_baseline"] is not None:
        yield f"  KL         {score['kl_from_baseline']:.6g} nats a token from the baseline"


def _evidence(view: View) -> Iterator[str]:
    digest, log = view["digest"], view["log"]
    yield f"digest       recorded   {view['intervention_sha256'] or 'none'}"
    same = "the same" if digest["agrees"] else (
        "different: the record is not what is shown here"
    )  # fmt: skip
    yield f"             recomputed {digest['recomputed']}: {same}"
    if digest["state_agrees"] is not None:
        what = "matches the events before it" if digest["state_agrees"] else (
            "does NOT match the events before it"
        )  # fmt: skip
        yield f"             the recorded intervention {what}"
    head = log["head"]
    if log.get("unproven"):
        yield f"log          unproven: {log['events']} events verify, head {head['position']} {head['hash']}"
        yield f"             {log['detail']}"
    elif log["ok"]:
        yield f"log          verified: {log['events']} events, head {head['position']} {head['hash']}"
    else:
        yield f"log          damaged from position {log['first_bad']} on; everything shown here lies before it"
