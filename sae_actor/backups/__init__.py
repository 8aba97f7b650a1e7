"""Backups: the log at one head with what belongs to it, as a tar; and the way back.

contents     what is in one: its members, the manifest with their digests
making       of a running service, or of the folder of a stopped one
tar          a tar as a stream
checking     a tar read as something that anyone may have made
restoring    a data folder made of one, all of it or none

A backup holds no index, snapshot, token or settings: what is not listed in `contents` stays where it is.
"""
