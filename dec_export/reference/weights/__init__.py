"""Weights: read without executing anything, fitted to a model, with a word about where they came from.

`checkpoint` puts them together. `files`: what a file holds. `layouts`: one file for each program that writes
checkpoints. `transformer`: whether a backbone is the recipe's. `fitting`: all weights into a model, or none. `hub`:
timm's pretrained weights.
"""
