"""The operators of domain `dec`: what each takes and gives, and how a node of an ONNX graph says so.

One solve of a canonicalizer is a chain of them, f standing for the first four:

    phi -> Warp -> Convolve -> Activate -> Convolve -> Score -> f(phi) -> Mix -> phi ...  and Keep beside Mix

Each stands for one kernel of a TensorRT plugin, and has a body in standard ONNX (`bodies.py`) for every other
runtime. A node tells the plugin everything in one attribute, `config`: JSON of the fields of a class in `kinds`, the
node's name among them, so that an error can name it. Attributes that the body needs stand beside it.

The version is part of an operator's name, because the plugin interface knows no other version than 1. The sizes of a
pooling are part of it, too: a function's body may take them from the node's attributes, but TensorRT's parser then does
not find them (1.7 for RTX; it does find other attributes), so the body has to hold the numbers.
"""

from __future__ import annotations

from dec_export.onnx_export.operators.base import DOMAIN, Operator
from dec_export.onnx_export.operators.kinds import ActivateV1, ConvolveV1, KeepV1, MixV1, ScoreV1, WarpV1, kind_of
from dec_export.onnx_export.operators.nodes import check_tensors, operators_in, read_config
from dec_export.onnx_export.operators.tensors import TensorSpec

__all__ = [
    "DOMAIN",
    "ActivateV1",
    "ConvolveV1",
    "KeepV1",
    "MixV1",
    "Operator",
    "ScoreV1",
    "TensorSpec",
    "WarpV1",
    "check_tensors",
    "kind_of",
    "operators_in",
    "read_config",
]
