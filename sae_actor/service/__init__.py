"""The service as a process.

process            `run`: checks settings, binds the port, returns the exit code
service            wiring, start and graceful shutdown; SIGTERM and SIGINT arrive in `api.server.http_server`
adapters           the implementations of the ports
lazy_engine        the engine that imports torch at the first load
garbage            the collector of cyclic garbage, for a process that lives long
capabilities       what this build can do, for `/api/capabilities`
"""
