"""Weights of the reference: files that are read without executing them, and their layouts."""
