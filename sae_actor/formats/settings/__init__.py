"""What the files next to weights say.

keys             what becomes of every key: heeded, refused by name, or left with its reason
sae_lens_keys    those of SAELens, through its versions
statistics       of features: `features.json`
processed        what a library did to a model's weights before it read activations
"""
