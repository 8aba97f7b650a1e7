"""sae-actor: attach sparse autoencoders to a running language model, steer them over HTTP, prove what was active.

The map. Arrows of import point down only (a test keeps it so).

    cli/, client/, serve, config, demo/    settings, wiring, and the program that speaks to a service
    reproducing/                           texts run again from a log, each with a verdict
    wanted                                 the model of the settings beside that of the log
    listening                              the socket and the server on it
    api/                                   HTTP: commands, resources, events, text, the page
    actor/              engine/            one mailbox, one writer | model, hooks, text on one device thread
    deferred                               the engine that imports torch when a model is first wanted
    eventlog/   hub/    sae/  formats/     the log | SAEs and models on disk | the algebra | one file per format
    architectures, families                where the hook points of each model family are
    ports                                  every edge as a Protocol
    modelfiles, lfs                        names of a model's files; git-lfs pointers in their place
    access                                 names, roles and digests of tokens
    counting                               numbers that only grow, for GET /metrics
    logs, tracing                          standard error, and spans where they are asked for
    domain/  errors                        the rules: decide, evolve, pending — pure

Where it departs from the house plan: a format is one torch-free `read(files) -> Layout` that serves describing and
loading alike, so `sae` imports `formats`; what the device may keep (`domain.pending.residents`) is told to the
engine beside the owed effects, so that replacing an SAE and unloading a model need no effect of their own; texts are
made together by an attention function of ours in place of transformers' continuous batching (`engine` says why); and
the families' table lies apart from torch, so that `/api/capabilities` can list it.
"""

__version__ = "0.1.0"
