"""Text under an intervention: admitted by a turn of the actor, made by the engine, closed on record.

generations    `Generations`: admits requests and keeps those that run
running        `RunningGeneration`: its tokens, then its end on record
records        what goes on record of the end of one
activations    what SAEs read in a given text, without making one
monitoring     activations of monitored SAEs, announced to whoever listens
"""

from .activations import read_activations
from .generations import Generations
from .running import Completed, RunningGeneration, TokenOptions

__all__ = ["Completed", "Generations", "RunningGeneration", "TokenOptions", "read_activations"]
