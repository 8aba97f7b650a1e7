"""Measuring what is given, instead of making text.

inputs     `inputs` of a request: texts, chats or token ids, and what they come to as tokens
targets    tokens that a request names; detailed: features whose change it names
score      `/api/score`; `results`: what it answers
texts      lists of texts and chats; many prompts read next to each other
places     hook points that a request names
lists      answers with long lists, encoded and sent in parts; `tensors`: safetensors files
contrast   `/api/contrast`: the features that tell two lists of texts apart
directions   `/api/directions`: vectors made of texts, or by chance
lens       `/api/lens`: what the residual stream says of the next token, layer by layer
"""
