"""Work on a log for who audits it.

offline      verify and read a folder, without a service and without changing a byte
bundle       export and import; contents: the files of an export
streamed     an export of a log that is being written, as a tar
verifier     a program that goes with an export; explainer, explain_words: another
histories    two logs side by side
redaction    a payload erased, the chain kept
"""
