"""The event log: append-only, hash-chained, held by one process.

SqliteLog    a data folder: events.db, events.lock, head.checkpoint      MemoryLog    its twin without a disk
offline      `log verify` and `log show` on a folder, without a service and without changing a byte

chain        salts, digests, the walk that verifies        schema      tables, triggers, settings
checkpoint   the head, written outside the log             lock        one writer or many readers
inspection   what is examined before anything is opened    reader, writer    the two sides of the connection
"""

from .bundle import export_bundle, import_bundle
from .memory import MemoryLog
from .offline import events_of, verify_folder
from .redaction import redact
from .sqlite import SqliteLog

__all__ = ["MemoryLog", "SqliteLog", "events_of", "export_bundle", "import_bundle", "redact", "verify_folder"]
