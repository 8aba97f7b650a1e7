"""The rules, by subject. Each function returns the events that follow, or raises the error of its refusal.

start          effects the last process died under
models         load and unload a model
downloads      download, import and delete SAEs
attachments    attach, detach, steer and monitor them
presets        interventions with a name
edits          which edits of features may be in force
admission      generations, and the intervention that each takes with it
"""
