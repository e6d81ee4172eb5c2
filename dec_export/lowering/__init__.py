"""Exact rewritings of the reference for inference, one module each."""
