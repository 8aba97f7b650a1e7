"""What the service says of itself.

metrics      counters and histograms, for `GET /metrics`
logs         lines on standard error, for people or as JSON
libraries    what libraries say, which is not for users
traces       OpenTelemetry spans, where the settings ask for them
"""
