"""Middleware: what a request meets before any route is looked at.

guard          the order of the checks; `policy`: the settings that they go by
checks         host name, address, body, origin
identity       token, cookie of a login, role
sessions       logins of browsers; `attempts`: how often one address may fail
headers        hardening, and CORS for listed origins
concurrency    how many requests begin at once, and how many do what takes long
access_log     every request counted, timed, logged
shutdown       requests still unanswered when the service stops get 503
"""
