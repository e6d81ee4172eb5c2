"""Files that are copied into a model repository, and run there without dec_export."""
