"""Recipes, which describe models as validated data.

`model` has the types of a recipe, and `Recipe` itself. `families` says where timm's models have their features.
`reading` reads YAML files with limits. `shipped` has the recipes that ship with dec-export. `published` translates the
configuration files of the published code.
"""
