"""Rewritings of an exported ONNX model, with one module for each; `base` has their base class."""
