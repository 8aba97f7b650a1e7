"""SAE algebra: load, encode, decode, and the differences that steering adds to an activation.

    load          files → `SAE`, in pieces, checked
    autoencoder   `SAE`: encode, decode, the whole pass
    encoder       the encoders, and the choice of the k largest
    sparse        sums over active decoder rows
    overflow      strengths beyond what a type holds
    steering      edits → differences, vectorised over rows
    projections   differences along directions, solved jointly
    units         strengths in other units → raw ones

`formats` reads what the files say; it knows nothing of torch and is imported by this package, never the other way.
"""

from .autoencoder import SAE, SaeSpec
from .load import load_sae
from .steering import Difference, Steering
from .units import resolve_units
