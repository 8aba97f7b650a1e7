"""Language models, without torch.

families    the hook points of each model family
bounds      what settings may ask for
files       folders of models, and names on a hub
quantization  quantised weights: what their libraries and devices are
"""
