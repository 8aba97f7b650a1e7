"""Every edge of the service as a Protocol; one contract suite per port runs against fake and real adapter.

    log          the event log: `EventLog`, implemented in `eventlog`
    hub          SAEs on disk: `Hub`, implemented in `hub`
    engine       the device: `Engine`, implemented in `engine`
    generation   the request for a generation, its tokens and its end; generation_stream: the `GenerationStream`;
                 reading: what else is read of a text; scoring: texts that are scored, not made
    measuring    groups of texts that runs measure
    backups      copies of a data folder while it is written in: `Backups`, implemented in `backups`
    clock        the time; `progress`: how far slow work is
    durability   files on disk: uploads on their way there, fsync

`actor` and `api` know the world only through these.
"""

from ..domain.reports import AttachedSae, HubSae
from .backups import Backup, Backups
from .clock import Clock
from .engine import Engine, FeatureDetails, ModelSize, NearFeature, TokenizerInfo, TokenWeight
from .generation import (
    Activations,
    FeatureActivation,
    Finished,
    GenerationRequest,
    Grammar,
    Rest,
    Token,
    Tokenized,
    Watch,
    labelled,
)
from .generation_stream import GenerationStream, wait_for_news
from .hub import CatalogEntry, Hub, NamedSae, NewVectors
from .log import EventLog, Head, Verification, follow
from .measuring import ComparedRows, EvaluatedGroup, ProfiledFeatures, ReadGroup, TextGroup
from .progress import OnProgress, Progress
from .reading import FeatureChange, Pooled, Pooling, PositionDetails, TokenScore, labelled_changes
from .scoring import PromptToken, ScoredToken, Scores, Scoring, TargetToken
