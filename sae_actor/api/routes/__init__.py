"""Resources over HTTP; each module puts its routes into the table of operations.

commands       `/api/commands`: every command
saes           `/api/saes`, `/api/catalog`; `steering`: the edits in force
events         `/api/events`: the stream
log            `/api/log`, `/api/state`; audit/: what else the audit of a log asks for
generations    `/api/generations`: what was active for each answer
presets        `/api/presets`: interventions with a name
vectors        `/api/vectors`: directions of one's own
service        `/api/model`, `/api/capabilities`, `/health`, `/ready`
login          `/api/login`: sessions of browsers
metrics        `/metrics`
"""
