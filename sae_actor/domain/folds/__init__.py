"""Parts of `evolve`.

labels         the sources of labels
attachments    what is attached, or about to be
restart        what a start leaves of the state before it
"""
