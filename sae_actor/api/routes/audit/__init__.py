"""The audit of a log while the service runs: what `log …` of the command line asks for.

moments      positions and times of a log, as requests name them; the state then
evidence     `/api/log/verify`, `/api/log/diff`
explain      `/api/log/explain`: answers by id, tag or position
export       `/api/log/export`
"""
