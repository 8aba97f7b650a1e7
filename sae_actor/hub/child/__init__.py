"""One download or catalog, in a process of its own (`python -m sae_actor.hub.child`), which imports the hub's library.

__main__    dies with the service, reveals no secrets
fetch       the download from commit to description
remote      the hub over HTTP: guarded origins, classified refusals
head        what a HEAD says of one file, and which redirects it follows
endpoint    addresses in the hub's answers, rebased onto HF_ENDPOINT
transfer    one file: continued by Range, digested while it arrives, renamed when right
meter       progress and announced waits
catalog     the SAEs of a repository without their weights
models      the files of a model, into the user's own cache
"""
