"""The operators of domain `dec`: their inputs, outputs and attributes, and their nodes in an ONNX graph.

One solve of a canonicalizer is a chain of operators, in which the first five nodes compute f:

    phi -> Warp -> Convolve -> Activate -> Convolve -> Score -> f(phi) -> Mix -> phi ...  and Keep beside Mix

Each operator is run by one kernel of a TensorRT plugin, and has a body in standard ONNX (`bodies.py`) for every other
runtime. A node passes all its settings to the plugin in one attribute, `config`: JSON of the fields of a class in
`kinds`, with the node's name, so that an error can name the node. The attributes that the body needs are given as well.

The version is part of an operator's name, because the plugin interface supports no other version than 1. The sizes of a
pooling are part of the name too. A function's body may take them from the node's attributes, but TensorRT's parser does
not find these attributes (1.7 for RTX; it does find others), so the body holds the numbers.
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
