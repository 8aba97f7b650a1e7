"""Subscriptions: events as they are stored, for many readers.

broadcast    `Broadcast`: one ring of recent events, a cursor for each reader, the log for readers further back
frames       server-sent events, each encoded once; `EventFilter`: those a reader subscribes to
"""

from .broadcast import PAGE, Broadcast
from .frames import EVERYTHING, EventFilter, progress_frame, sse
