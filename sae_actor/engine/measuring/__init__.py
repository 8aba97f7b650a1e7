"""Measurements of groups of texts, between the steps of generations.

measurements `evaluate`, `read_group` and `compare_rows` of the port
background   work in pieces, done while nothing is generated
passes       forward passes over texts, with one hook that reads or writes
evaluation   the passes of an evaluation, and its sums
reading      what an SAE reads in texts
rows         an SAE's rows, compared with each other
"""
