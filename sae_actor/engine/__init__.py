"""The device: one model, the SAEs on it, text. Everything that knows torch and transformers at once is here.

    engine        `TorchEngine`, the port; the event loop's side. Never waits for the model, never touches it
    streams       what the loop reads of one text
    worker        a thread with an inbox: one loads from disk, one reads prompts
    device        the device thread: jobs first, then one step of one running text, round robin
    generation    one text: feed, hook, sample, decode, deliver; its receipt
    hooks         an intervention on one forward pass: who writes where, sinks, faults, counts
    probes        SAEs that are read on the way, before any edit
    positions     which positions an edit covers; `turns`: where a chat's messages are
    sampling      logits → token, noise keyed by (seed, index)
    scoring       logits → log probabilities; `pieces`: text and bytes of single tokens
    text          tokens → text without half characters, stop strings
    prompts       text, chats, ids → token ids
    model         load, check, move, free a model; `source` finds its files, `environment` describes it
    residents     load, check, place, measure, free an SAE
    statistics    what an SAE's folder tells of its features
    features      one feature: norm, neighbours, tokens it promotes
    failures      errors of torch and transformers in the contract's words

Threads: what runs or changes the model, or frees what is on the device, is a job or a step of the device thread,
so nothing is locked. Loading reads into the CPU's memory in the loader thread and is swapped in by a job. A text's
hooks are on the model during its own steps only; between steps, and in steps of texts without an intervention, the
model carries none, and its results are those of the bare model bit for bit.
"""

from .engine import EngineSettings, TorchEngine

__all__ = ["EngineSettings", "TorchEngine"]
