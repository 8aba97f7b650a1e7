"""One writer of the state: envelopes in, events out, effects beside.

    submit ─> Envelope ─> Mailbox ─> Actor turn: decide, append, evolve, publish, reconcile, reply
    EffectRunner: pending(state) as child tasks ─> report ─> Mailbox

Several waiting envelopes are decided one after the other and stored in one transaction; what is answered
or published is durable. Reads take `actor.state`, an immutable value, and never wait.
"""

from .activations import read_activations
from .actor import Accepted, Actor
from .broadcast import PAGE, Broadcast
from .frames import EVERYTHING, Wanted, names_sae, sse
from .mailbox import Envelope, Mailbox
from .perform import Performer
from .texts import Done, RunningText, Tell, Texts
from .units import raw_request

__all__ = [
    "EVERYTHING",
    "PAGE",
    "Accepted",
    "Actor",
    "Broadcast",
    "Done",
    "Envelope",
    "Mailbox",
    "Performer",
    "RunningText",
    "Tell",
    "Texts",
    "Wanted",
    "names_sae",
    "raw_request",
    "read_activations",
    "sse",
]
