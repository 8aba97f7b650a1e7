"""Features by what they are called.

features    one page of them, one of them
labels      import, export, delete
"""
