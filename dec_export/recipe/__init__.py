"""Recipes: which model is meant, as validated data.

`families`: where timm's models have their features. `reading`: YAML files, read with limits. `shipped`: the recipes
that ship with dec-export. `published`: the authors' configuration files. `model`: the types, and `Recipe` itself.
"""
