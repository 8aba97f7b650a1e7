"""sae-actor: attach sparse autoencoders to a running language model, steer them over HTTP, prove what was active.

The map. Arrows of import point down only.

    cli, client, config, serve, demo/      settings and wiring
    api/                                   HTTP: commands, resources, events, text
    actor/          engine/                one mailbox, one writer | model, hooks, text on one device thread
    eventlog/  hub/  sae/  formats/  architectures.py
    ports.py                               every edge as a Protocol
    domain/  errors.py                     the rules: decide, evolve, pending — pure
"""

__version__ = "0.1.0"
