"""Tokens, one step after another.

scheduler       the generations of a step, and its outcome
queue           those that wait for room
turns           whose a step is; its prompt tokens, shared by its prompts
model_runner    the forward pass: all generations in one batch, or one after another if the model cannot
attention       many generations in one forward pass, registered with transformers
recurrent       linear attention: the states that generations carry from token to token
kv_cache        where their keys and values are
bounds          what a request may take: tokens, positions, the tokens that end it
generation      one of them: prefill, decode, deliver; its receipt
sampler         logits → token, noise keyed by (seed, index)
penalties       logits of single tokens, changed by what came before and by `logit_bias`
grammars        JSON schemas → the tokens that may come next
logprobs        logits → log probabilities
scores          of given texts, chunk by chunk; side_by_side: one of them under several interventions
"""
