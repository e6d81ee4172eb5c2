"""Backbones of timm, and how warps are inserted into them."""
