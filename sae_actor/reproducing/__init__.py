"""Run a generation again from its record in the log, and judge the record.

    testbed      the model and the SAEs that it ran under, found again on this machine and checked
    local_saes   SAEs that lie elsewhere than the log says, found by their digests
    schemas      the JSON schema that it followed
    prompts      what it was given
    given        a text that was scored, scored again
    rescoring    its tokens scored one by one, and how far each was from what would be chosen here
    verdict      `reproduce`: both together, as plain values

`testbed` imports torch when the first model is loaded; everything that needs no model is reported first.
"""

from ..domain.views.recorded import Recorded, Recordings
from .testbed import Testbed
from .verdict import TOLERANCES, reproduce
