"""Interventions on one forward pass.

hooks               `hooks_installed`: the hooks of a step, on the model for as long as it runs
hook_points         where hooks go, for each model family
sae_intervention    one SAE of an intervention: what its edits cover
hook_site           a hook point that a generation writes to; faults, counts; edits of several as one set
step_hook           one hook point, all generations that write there, in one computation
positions           which positions an edit covers, and what makes an attention sink
probes              SAEs that are read, before any edit
details             what the edits did at each position
readouts            what else is told of the rows: features pooled, the rows themselves, the lens
"""
