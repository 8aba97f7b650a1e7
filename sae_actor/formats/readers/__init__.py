"""One module per family of SAE files, each with its `FORMAT`.

`registry.FORMATS` lists them; a new format is a module here, a line there and a fixture in `tests/formats/conformance`.
named_file has the families that say everything in the names of their files; layer_file is shared by several.
"""
