"""The layouts of checkpoints: one module for each program that writes them."""
