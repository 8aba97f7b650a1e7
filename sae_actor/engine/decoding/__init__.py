"""Tokens, one step after another.

scheduler       who is in a step, what becomes of it, who waits for room
model_runner    the forward pass: all generations in one, or one after another where the model cannot
attention       many generations in one forward pass, registered with transformers
kv_cache        where their keys and values are
generation      one of them: prefill, decode, deliver; its receipt
sampler         logits → token, noise keyed by (seed, index)
logprobs        logits → log probabilities
"""
