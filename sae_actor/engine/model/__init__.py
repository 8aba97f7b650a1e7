"""The model in memory.

loading        load, check, move, try, free a model
building       bound the number of a model's modules
source         find its files, and digest them
tail           what comes after the last block
outline        the modules of a model, without its weights
sizes          the memory that a model needs, without its weights
environment    versions and device, for the log
"""
