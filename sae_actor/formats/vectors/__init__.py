"""Vectors: directions without an encoder, of one's own or of other tools.

format            `FORMAT`: the three shapes of files, as one family
tensors           `vectors.safetensors`: W_dec [n, d] with a hook point; also how the service writes one
gguf              control vectors of repeng and llama.cpp
steering_config   steering of lm-evaluation-harness
found             one row at one hook point, and the choice of a layer among several
"""
