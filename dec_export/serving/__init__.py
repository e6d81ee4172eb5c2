"""Model repositories of Triton Inference Server that are written from bundles, and a check of a running server."""
