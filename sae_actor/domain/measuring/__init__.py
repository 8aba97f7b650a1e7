"""Runs as values.

specs      what each kind of run is asked for, without its texts
state      `RunState`: a run, as the fold of its events
waiting    why a run cannot go on
sweeps     rows of a sweep → means of each variant
summaries  sums → the numbers of an evaluation
"""
