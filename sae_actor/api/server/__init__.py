"""Connections, below the application.

listener      the socket, and the server on it with its signals
protocol      timeouts for slow clients, and limits on connections and requests
rejections    what is answered on a connection without the application
"""
