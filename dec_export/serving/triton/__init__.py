"""Triton Inference Server: the repository that it loads, and a client that checks its answers."""
