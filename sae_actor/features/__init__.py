"""The feature directory: what is said of an SAE's features, by labels that were imported and statistics.

features     `Features`: what the service asks, with the files of labels that it keeps
directory    `FeatureDirectory`: `features.db`, which is made again of those files where it is missing
searching    one page of features
merging      of several sources the one answer; `tables`: where they lie
lines        the lines of a file of labels: ours, Neuronpedia's, delphi's
matching     whether such a file is of this SAE
last_steered    where a feature was last steered, from the log
profiles     which profile counts for an SAE
own          what lies next to an SAE's weights: `features.json`, `labels.jsonl`
"""

from .directory import Example, FeatureDirectory, FeatureLabel, FeaturePage, FeatureRow, KnownFeature, Sort
from .features import Features, LabelCounts
