"""The layouts of data sets, each a module of this folder and a line of the registry."""
