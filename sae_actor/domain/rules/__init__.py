"""The rules, by subject: each function gives the events that follow, or raises what it refuses with.

start          what the last process died under
models         load and unload a model
downloads      download, import and delete SAEs
attachments    attach, detach, steer and monitor them
edits          which edits of features may be in force
admission      generations, and the intervention that each takes with it
"""
