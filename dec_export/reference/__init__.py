"""The reference model, in plain PyTorch: it computes what the published models compute."""
