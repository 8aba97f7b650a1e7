"""`index.db`: where in the log events are, for look-ups that must not read all of it. Disposable, never truth.

entries     what is entered of an event
tables      the tables of `index.db`, their version, the sums that show a changed byte
database    `IndexDatabase`: entered, asked, checked, erased, made again; blocking
follower    keeps it up with a log that grows, behind its back
finder      `Finder`: look-ups, by the index as far as it goes, from there on by the log
histories   the state before an answer, from the few events that it rests on

What the index says is compared with the events that it points at. It is used once its bytes have been checked; until
then, and behind its last event, the log itself is read. A backup leaves it out; without it everything is as right.
"""

from .database import IndexDatabase
from .finder import Finder
from .follower import catch_up, follow, settle
from .readable import Readable
from .tables import NAME as INDEX
