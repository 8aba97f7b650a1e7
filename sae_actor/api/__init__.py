"""HTTP: commands, resources, events, text.

security    host, origin, token
routes      one table of operations, for litestar and for the description alike
bodies      strict JSON and headers
commands, saes, reading, events, text   the routes
problems    errors as problem+json, in OpenAI's shape on /v1
web/        the page
"""

from .app import create_app
from .context import Context

__all__ = ["Context", "create_app"]
