"""The device: one model, the SAEs on it, generations. All code that knows both torch and transformers is here.

    engine           `TorchEngine`, the port; the event loop's side. Never waits for the model, never touches it;
                     `engine_tokenizer`: its part that reads and writes tokens
    settings         what a deployment chooses
    request_checks   refusals of what the model on the device cannot do
    worker           a thread with an inbox: one loads from disk, one reads prompts
    device_thread    jobs first, then one step of the generations that run
    memory           memory for the KV cache and SAEs
    failures         errors of torch and transformers as errors of `errors`

    decoding/        scheduler, model runner, attention, KV cache, sampler
    interventions/   hooks on a forward pass: steering, reconstruction, probes
    tokens/          text, chats and ids → token ids, and back
    model/           find, load, check, try, free a model
    measuring/       groups of texts that runs measure
    saes/            load, place, measure, free an SAE; its features; a request's intervention, made ready

Threads: what runs or changes the model, or frees what is on the device, is a job or a step of the device thread,
so nothing is locked. Loading reads into the CPU's memory in the loader thread and is swapped in by a job. Hooks are on
the model during steps that have a generation which needs them; rows of others pass them bit for bit.

Batching: the rows of all generations follow one another in one forward pass, and an attention function of our own,
registered through transformers' `AttentionInterface`, keeps them apart; linear attention runs for each with its own
state (`decoding.recurrent`). transformers has continuous batching too; it was measured next to this
(`tests/bench/bench_engine.py --library`). It has one sampling setting for all, a thread that cannot be shared, and one
exception in it ends every request; here a step is a call of ours, so a generation fails alone, an SAE is swapped
between two steps, and each generation has its own sampling, without a private name of the library. No prefix is shared
between generations, so none is read that was computed under another intervention.
"""

from .engine import TorchEngine
from .settings import EngineSettings
