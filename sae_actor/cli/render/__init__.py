"""Answers as text for a person.

answers        what a service answers
explanation    why a generation came out so
difference     what changed between two positions of a log
progress       a bar for what takes long
"""
