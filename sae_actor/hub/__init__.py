"""SAEs on disk: fetched from a hub, imported, found again, deleted.

hub          `HuggingFaceHub`, the adapter of the port
layout       where files lie (the hub's own cache layout), and which names may be put there
claims       which of those files an SAE needs, written before they are fetched
selection    which files of a list make one SAE
digests      sha256 and git ids; what is known unchanged
conversion   safetensors made of pickles, kept next to them
imports, removal
kept_files   the files of one SAE, for backups; those of an import that a restore brought
vectors      what the service keeps next to hub/, in `vectors/`
names        names that SAEs have in SAELens and Neuronpedia, as the repository and path they stand for
catalogs     requested catalogs: few at a time, equal ones shared
process, protocol         one child process per download or catalog, and its messages
child/       what runs in that process
"""

from .hub import DOWNLOAD_HOSTS, HuggingFaceHub
from .protocol import Patience
