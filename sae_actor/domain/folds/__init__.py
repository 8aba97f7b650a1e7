"""Parts of `evolve`.

attachments    what is attached, or about to be
restart        what a start leaves of the state before it
"""
