"""The model in memory.

loading        load, check, move, try, free a model
source         its files: found, digested
environment    versions and device, for the log
"""
