"""Generations under an intervention: admitted by a turn of the actor, made by the engine, ended in the log.

generations    `Generations`: admits requests and holds the running ones
places         which request gets places among those that run and wait
quotas         what each principal may have at once, and in a minute
running        `Requested`; `RunningGeneration`: its tokens, then its recorded end; several of them read together
ending         when it ends
records        GenerationFinished, made from the engine's result
activations    what an SAE reads in a given prompt, without generating
details        which features are reported before and after the edits
behind         how probable a given text is, and what an SAE reads in it, for runs
monitoring     activations of monitored SAEs, published as they are read
"""

from .activations import read_activations, read_prompt
from .behind import Continued, read_behind, score_behind
from .details import MOST_FEATURES, NamedFeature, detail_watches
from .generations import Generations
from .quotas import Hold
from .records import score_summary
from .running import Completed, Requested, RunningGeneration, TokenOptions, abandon, as_ended, ends, interleaved
