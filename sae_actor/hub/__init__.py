"""SAEs on disk: fetched from a hub, imported, found again, deleted.

    hub          `HuggingFaceHub`, the adapter of the port
    layout       where files lie (the hub's own cache layout), and which names may be put there
    claims       which of those files an SAE needs, written before they are fetched
    selection    which files of a list make one SAE
    digests      sha256 and git ids; what is known unchanged
    conversion   safetensors made of pickles, kept beside
    imports, removal
    listings     catalogs that are asked for: few at a time, equal ones together
    process, protocol         one child process per download or catalog, and what is said to it

In the child alone, which imports the hub's library:

    child        its main: dies with the service, tells no secrets
    fetch        the download from commit to description
    remote       the hub over HTTP: guarded origins, classified refusals
    endpoint     addresses in the hub's answers, rebased onto HF_ENDPOINT
    transfer     one file: continued by Range, digested while it arrives, renamed when right
    meter        progress and announced waits
    catalog      the SAEs of a repository without their weights
    models       the files of a model, into the user's own cache
"""

from .hub import DOWNLOAD_HOSTS, HuggingFaceHub
from .protocol import Patience

__all__ = ["DOWNLOAD_HOSTS", "HuggingFaceHub", "Patience"]
