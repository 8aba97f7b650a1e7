"""Who is next.

waiting     texts that wait for their first step: in turn by principal, then those to score, then those of runs
"""
