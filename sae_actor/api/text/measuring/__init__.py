"""Measuring what is given, instead of making text.

inputs     `inputs` of a request: texts, chats or token ids, and what they come to as tokens
targets    tokens that a request names
score      `/api/score`; `results`: what it answers
"""
