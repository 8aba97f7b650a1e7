"""Runs of kind `sweep`.

rows    the rows, in their order
cells   one text, and its row
"""
