"""What runs found, in the shapes of the field's tools.

neuronpedia  a profile in the files of Neuronpedia's bulk downloads
saebench     an evaluation in the shape of SAEBench's `core`
"""
