"""Clients of others against a running service, each in an environment of its own.

frame      makes the environments, runs the scripts, prints the table; `python -m tests.environments clients`
listed     the clients: name, requirements, script
scripts/   what each client does; run by its environment's Python, where neither the project nor its tests are
"""
