"""Resources over HTTP; each module puts its routes into the table of operations.

commands       `/api/commands`: every command
saes           `/api/saes`, `/api/catalog`; `steering`: the edits in force
events         `/api/events`: the stream
log            `/api/log`, `/api/state`
generations    `/api/generations`: what was active for each answer
vectors        `/api/vectors`: directions of one's own
service        `/api/model`, `/api/capabilities`, `/health`, `/ready`
login          `/api/login`: sessions of browsers
metrics        `/metrics`
"""
