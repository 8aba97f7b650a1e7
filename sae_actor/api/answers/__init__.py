"""Answers in JSON with the ETag of their state.

short    made and encoded at once
lists    `LongLists`: long lists in answers, encoded and sent in parts
long     whole answers that may be long, made in a thread
"""

from .short import answer, state_of
