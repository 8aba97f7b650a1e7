"""Runs over HTTP.

routes    `/api/runs`: what there is, what each found
request   a `Run` as it is put on record: its spec checked, its texts on disk; sweeps, contrasts: those
          specs
sources   texts in a spec
uploads   `/api/texts`: lists of texts
tables    rows as NDJSON, CSV or Parquet
"""
