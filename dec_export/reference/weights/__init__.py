"""Weights, which are read without executing anything, fitted to a model, and described by their source.

`checkpoint` loads a model's weights with the help of the others. `files` reads the content of a file. `layouts` has one
module for each program that writes checkpoints. `backbones` finds a backbone in a checkpoint, and `transformer` and
`residual` check that it is that of the recipe. `fitting` copies all weights into a model, or none. `hub` loads timm's
pretrained weights.
"""
