"""States and events for readers.

resources      answers of the API
explanation    why a generation came out so
provenance     which events brought what is in a state
difference     what changed between two positions
"""
