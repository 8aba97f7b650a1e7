"""SAEs on the device.

residents          load, check, place, measure, free an SAE
feature_details    one feature: norm, neighbours, tokens that it promotes
"""
