"""The model in memory.

loading        load, check, move, try, free a model
source         its files: found, digested
building       its modules, as far as there are so many
outline        a model without its weights: what its blocks are made of
environment    versions and device, for the log
"""
