"""The event log: append-only, hash-chained, held by one process.

SqliteLog    a data folder: events.db, events.lock, head.checkpoint

chain         salts, digests, the walk that verifies       schema      tables, triggers, settings
checkpoint    the head, written outside the log            lock        one writer or many readers
inspection    what is examined before anything is opened   reader, writer    the two sides of the connection
connection    SQLite on a thread of its own                backup      a copy while the log is written
new_database  a log that does not exist yet                wal         what a crash left
origin        which file a log is in, how it came there

audit/        verified, exported, imported, redacted: without a service
"""

from .audit.bundle import export_bundle, import_bundle
from .audit.offline import events_of, verify_folder
from .audit.redaction import redact
from .sqlite import SqliteLog
