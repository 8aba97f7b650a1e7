"""One writer of the state: envelopes in, events out, effects next to it.

    submit ─> Envelope ─> Mailbox ─> Actor turn: decide, append, evolve, publish, reconcile, reply
    EffectRunner: pending(state) as child tasks ─> report ─> Mailbox

    actor            `Actor`: submit, admit, replay, stop; turn: the envelopes that are stored together
    mailbox          bounded, with reserved room for reports
    effect_runner    starts and cancels the effects that the state owes; performer: how each is done
    history          a command in the log: its outcome, its idempotency key
    strengths        strengths in other units, resolved to raw before a command is decided
    counts           counters for `GET /metrics`

Several waiting envelopes are decided one after the other and stored in one transaction; everything answered
or published is durable. Reads take `actor.state`, an immutable value, and never wait.
"""

from .actor import Actor
from .history import Accepted, accepted_events, command_id_of
from .mailbox import Envelope, Mailbox
from .performer import Performer
from .strengths import raw_request
