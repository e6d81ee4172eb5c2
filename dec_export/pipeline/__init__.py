"""The verbs of the library: what the commands do, in the order of the pipeline."""
