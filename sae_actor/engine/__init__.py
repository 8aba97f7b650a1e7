"""The device: one model, the SAEs on it, text. Everything that knows torch and transformers at once is here.

    engine        `TorchEngine`, the port; the event loop's side. Never waits for the model, never touches it
    streams       what the loop reads of one text
    worker        a thread with an inbox: one loads from disk, one reads prompts
    device        the device thread: jobs first, then one step of the texts that run
    batch         who is in a step, what becomes of it, who waits for room
    decoding      how a model makes tokens: all texts in one forward pass, or in turn where it cannot
    attention     many texts in one forward pass, registered with transformers; `keyvalues`: where their keys are
    generation    one text: feed, sample, decode, deliver; its receipt
    hooks         interventions on one forward pass: who writes where, faults, counts
    joint         one hook point, all texts that write there, in one computation;
                  `joins`: their edits as one set; `entries`: a text there, its rows
    sinks         positions whose norm says nothing about a feature
    probes        SAEs that are read on the way, before any edit
    positions     which positions an edit covers; `turns`: where a chat's messages are, told by `marks` in what
                  `templates` write
    sampling      logits → token, noise keyed by (seed, index)
    scoring       logits → log probabilities; `pieces`: text and bytes of single tokens
    text          tokens → text without half characters
    answers       a token → what its reader is shown: `reasoning`: thoughts apart; `stops`: stop strings; `runs`
    prompts       text, chats, ids → token ids; `controls`: what merely spells a control token stays text
    model         load, check, move, try, free a model; `source` finds its files, `environment` describes it
    memory        what there is for keys, values and SAEs
    residents     load, check, place, measure, free an SAE
    statistics    what an SAE's folder tells of its features
    features      one feature: norm, neighbours, tokens it promotes
    failures      errors of torch and transformers in the contract's words

Threads: what runs or changes the model, or frees what is on the device, is a job or a step of the device thread,
so nothing is locked. Loading reads into the CPU's memory in the loader thread and is swapped in by a job. Hooks are on
the model during steps that have a text which needs them; rows of other texts pass them bit for bit.

Batching: the rows of all texts stand behind one another in one forward pass, and an attention function of our own,
registered through transformers' `AttentionInterface`, keeps them apart. transformers has continuous batching too; it
was measured beside this (`tests/bench/bench_engine.py --library`). It has one sampling setting for all, a thread that
cannot be shared, and one exception in it ends every request; here a step is a call of ours, so a text fails alone, an
SAE is swapped between two steps, and each text has its own sampling, without a private name of the library. No prefix
is shared between texts, so none is read that was computed under another intervention.
"""

from .engine import EngineSettings, TorchEngine

__all__ = ["EngineSettings", "TorchEngine"]
