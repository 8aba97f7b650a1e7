"""SAE algebra: load, encode, decode, and the differences that steering adds to an activation.

    load          files → `SAE`, in pieces, checked
    autoencoder   `SAE`: encode, decode, the whole pass
    encoder       the encoders, and the choice of the k largest
    sparse        sums over active decoder rows
    steering      edits → differences, vectorised over rows

`formats` reads what the files say; it knows nothing of torch and is imported by this package, never the other way.
"""

from .autoencoder import SAE
from .load import load_sae
from .spec import SaeSpec

__all__ = ["SAE", "SaeSpec", "load_sae"]
