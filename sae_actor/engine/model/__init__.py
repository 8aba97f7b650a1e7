"""The model in memory.

loading        load, check, move, try, free a model
source         its files: found, digested
environment    what it ran with, for the record
"""
