"""One module per family of SAE files: `recognise(files)`, `read(files) -> Layout`.

`registry.FORMATS` lists them; a new format is a module here, a line there and a fixture in `tests/formats/conformance`.
named_file and layer_file are shared by several families.
"""
