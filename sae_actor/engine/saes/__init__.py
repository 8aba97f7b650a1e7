"""SAEs on the device.

residents          load, check, place, measure, free an SAE
at_rest            strengths of an SAE that is not attached
feature_details    one feature: norm, neighbours, tokens that it promotes
statistics         statistics of features in an SAE's folder
"""
