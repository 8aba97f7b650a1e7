"""Runs: measurements that take long, and go on after anything.

runs        `Runs`: takes them on, computes them as effects, shows and erases them
store       `runs/` in the data folder: a file for each run, with its texts and rows
lists       lists of texts: inline, files, uploads
parquet     lists and rows as Parquet, where pyarrow is
job         one run under way: its texts, its rows, its place on the device
sweeps      texts under several interventions
contrast    the features that tell two lists of texts apart; pooled: the lists, as they are kept
evaluate    what an SAE's reconstruction costs the model
profile     what each feature does; features: numbers per feature, out of what was read
exports     what they found, in the shapes of Neuronpedia and SAEBench
statistics  what profiles found, for units and the feature route
"""

from .runs import Runs
from .store import RunFolder
