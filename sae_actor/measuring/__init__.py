"""What readings come to: statistics of activations. Pure functions; whoever calls them has read the texts.

rows         the results as structs, without torch
contrast     two lists of texts, pooled feature by feature → features that tell them apart
"""
