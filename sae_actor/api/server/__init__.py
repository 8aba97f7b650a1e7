"""Connections, below the application.

listener      the socket, and how many connections it may have
http_server   uvicorn's server; SIGTERM and SIGINT begin the graceful shutdown here
protocol      timeouts for slow clients, and limits on connections and requests
transports    what the system holds of a connection
rejections    answers sent on a connection without the application
"""
