"""Work on a log without its writer.

offline      verify and read a folder, without a service and without changing a byte
bundle       export and import; `verifier`: the program that goes with an export
histories    two logs side by side
redaction    a payload erased, the chain kept
"""
