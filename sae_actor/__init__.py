"""sae-actor: attach sparse autoencoders to a running language model, steer them over HTTP, prove what was active.

The map. Arrows of import point down only (a test keeps it so).

    cli/                 the command line: clients of a service, the service itself, the audit of a log
    client/              the HTTP client in Python
    demo/                a first model and SAE, ready to be steered
    reproducing/         generations run again from a log, each with a verdict
    service/             the process: wiring, start, graceful shutdown
    api/                 HTTP: guard, commands, resources, events, text, the page
    generations/         text under an intervention: admitted, made, put on record
    actor/               one mailbox, one writer of the state, effects next to it
    subscriptions/       events as they are stored, for many readers
    engine/              the device: the model, interventions on it, decoding
    measuring/           statistics of what was read
    sae/                 the algebra of SAEs
    backups/             the data folder as one file, and back
    hub/                 SAEs and models on disk: downloaded, imported, deleted
    eventlog/            the log: append-only, hash-chained; its audit
    formats/             SAE files, one reader per family
    models/              model families and their hook points; folders of models
    telemetry/           metrics, log lines, traces
    config/              settings, access, environment variables
    ports/               every edge as a Protocol
    domain/  errors      the rules: decide, evolve, pending — pure

Three decisions that a reader may stumble over. A format is one torch-free `read(files) -> Layout` that serves
describing and loading alike, so `sae` imports `formats`. What the device may keep (`domain.pending.residents`) is
handed to the engine next to the owed effects, so that replacing an SAE and unloading a model need no effect of their
own. Generations share a forward pass through an attention function of our own, in place of transformers' continuous
batching (`engine` says why).
"""

__version__ = "0.1.0"
