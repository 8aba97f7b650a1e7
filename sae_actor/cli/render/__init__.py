"""Answers as text for a person.

answers        answers of the service
explanation    what was active for a generation
difference     what changed between two positions of a log
progress       a bar for slow work
"""
