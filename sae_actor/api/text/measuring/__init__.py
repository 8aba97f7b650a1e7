"""Measuring what is given, instead of making text.

inputs     `inputs` of a request: texts, chats or token ids, and what they come to as tokens
texts      lists of texts and chats; many prompts read next to each other
contrast   `/api/contrast`: the features that tell two lists of texts apart
lens       `/api/lens`: what the residual stream says of the next token, layer by layer
"""
