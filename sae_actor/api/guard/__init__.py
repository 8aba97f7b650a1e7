"""Middleware: checks and records around every route.

middleware     the shape that all of it has
guard          the order of the checks; `policy`: their settings
checks         host name, address, body, origin
identity       token, cookie of a login, role
sessions       logins of browsers; `attempts`: how often one address may fail
open_requests  requests under way, which end with their token or login
headers        hardening, and CORS for listed origins
access_log     every request counted, timed, logged
shutdown       requests still unanswered when the service stops get 503
"""
