"""A thin HTTP client with the methods of the command line; answers are the service's own JSON.

    with Client("http://127.0.0.1:8000") as client:
        sae_id = client.find("sae-")
        client.attach(sae_id)
        client.steer(sae_id, {584: 85})
        client.generate("Tell me", temperature=0)["choices"][0]["text"]

A refusal is raised as its class of `sae_actor.errors`, with the problem's fields; a service that does not answer as
`UnreachableError`. Nothing is retried: pass `key` to `command` and send it again if the answer was lost.
By default edits and readings leave out attention sinks (`exclude: ["sink"]`), as everywhere.
"""

from .calls import DEFAULT_URL, Client
from .sse import StreamEvent
from .wire import UnreachableError
