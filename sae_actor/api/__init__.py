"""HTTP: commands, resources, events, text.

security    host, origin, token, role
sessions    logins of browsers
transport   the clock on connections, how many there may be, and how many requests on each
refusing    what is answered on a connection without the application
turnstile   how many requests begin at once, and how many do what takes long
pages       the log by the page
asking      what the engine is asked for one client
streaming   answers that are sent as they are made
ending      what is not answered when the service stops is refused
routes      one table of operations, for litestar and for the description alike
bodies      strict JSON and headers
commands, saes, reading, events, text, login   the routes
observing   every request counted, timed, told to the access log
metrics     what there is to watch
openapi, schemas, shapes   the description
problems    errors as problem+json, in OpenAI's shape on /v1
web/        the page
"""

from .app import create_app
from .context import Context
from .ending import Unanswered
from .observing import ACCESS
from .sessions import Sessions

__all__ = ["ACCESS", "Context", "Sessions", "Unanswered", "create_app"]
