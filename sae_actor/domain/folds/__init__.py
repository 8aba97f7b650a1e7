"""Parts of `evolve`.

labels         the sources of labels
attachments    what is attached, or about to be
runs           measurements, from their request to their end
restart        what a start leaves of the state before it
"""
