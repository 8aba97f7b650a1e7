"""HTTP: commands, resources, events, text.

app            the ASGI application: middleware around the table of operations
context        what every route may use
operations     one table of routes, for the framework and for the description alike
types          requests and answers of the framework
requests       strict JSON bodies and headers
names          names of the model on /v1, with presets
vectors        vectors on their way to the data folder and on record
submission     commands on their way to the actor, and their answers
answers        JSON with the ETag of its state
problems       errors as problem+json, in OpenAI's shape on /v1
disconnects    clients that leave: work and streams for them alone end
kept_answers   answers under an idempotency key, for a while
limits         expensive work, for a few clients at a time
log_pages      the log in pages

guard/         middleware: host, origin, token, role; logins; access log; shutdown
routes/        the resources of `/api`, health and metrics
text/          `/v1`: completions and chat, and `/api` routes that make or read text
server/        connections: timeouts, limits, what is answered without the application
openapi/       the description of the API
web/           the page
"""

from .app import create_app
from .context import Context
from .guard.sessions import Sessions
