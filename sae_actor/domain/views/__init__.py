"""States and events for readers.

resources      the model, the whole state, what the service waits for
saes           one SAE
attachments    what is attached, steered and monitored
presets        interventions with a name
capabilities   what this build can do
outcomes       what became of a command
fields         types of fields that they share
recorded       what the log holds of each generation
explanation    why a generation came out so; `explained`: the answer
provenance     which events brought what is in a state
difference     what changed between two positions
"""
