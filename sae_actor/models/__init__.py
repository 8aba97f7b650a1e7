"""Language models, without torch.

families    the hook points of each model family
files       folders of models, and names on a hub
quantization  quantised weights: what their libraries and devices are
"""
