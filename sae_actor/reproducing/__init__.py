"""A generation run again from what the log holds of it, and a verdict on what the log says.

    recorded     what the log holds of each generation: its beginning, its end, the state between
    testbed      the model and the SAEs that it ran under, found again on this machine and checked
    rescoring    its tokens scored one by one, and how far each was from what would be chosen here
    verdict      `reproduce`: both together, told as plain values

Torch is imported by `testbed`, when the first model is loaded; everything that can be told without one is told first.
"""

from .recorded import Recorded, Recordings
from .testbed import Testbed
from .verdict import TOLERANCES, reproduce

__all__ = ["TOLERANCES", "Recorded", "Recordings", "Testbed", "reproduce"]
