"""The truth: plain PyTorch that computes what the published models compute."""
