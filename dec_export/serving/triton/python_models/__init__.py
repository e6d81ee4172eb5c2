"""The Python files that are copied into a model repository. They run there without dec_export."""
