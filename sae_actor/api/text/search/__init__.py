"""Answers found by their prompt, which the log knows by its salted digest alone.

routes   `/api/generations/search`
scan     the ends of generations, from the newest back
"""
