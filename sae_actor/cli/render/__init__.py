"""Answers as text for a person.

answers        answers of the service
explanation    what was active for a generation
methods        the same as a paragraph for a paper; citations: its BibTeX
difference     what changed between two positions of a log
shading        the tokens of an answer, coloured by a feature
progress       a bar for slow work
"""
