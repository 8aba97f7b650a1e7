"""The rules of the service as pure functions over frozen values. No torch, no I/O, no clock.

decide       a message and a state give the events that follow; `rules/` has them by subject
evolve       a state and an event give the next state; `folds/` has the longer parts
pending      a state gives the effects that it owes to the world
commands, messages             requests from outside, everything that enters a turn
effects, reports               what a state owes, what came of it
events/      what happened
state, refs, weights    the state, and the values that all of these share; ids of SAEs are in `weights`
chats                   prompts and answers of chats among their tokens
words                   edits and ranges in plain words
placement               where an SAE goes on the loaded model
structs                 structs made of others
measuring/   runs as values: their state, why one waits, what it comes to
views/       states and events as answers, explanations, differences
"""
