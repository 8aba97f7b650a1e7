"""The service as a process.

process            `run`: settings checked, port bound, exit codes
service            wiring, start and graceful shutdown
adapters           the implementations of the ports
lazy_engine        the engine that imports torch at the first load
capabilities       what this build can do, for `/api/capabilities`
"""
