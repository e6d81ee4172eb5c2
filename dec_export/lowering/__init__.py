"""Exact rewritings of the reference model for inference, with one module for each rewriting."""
