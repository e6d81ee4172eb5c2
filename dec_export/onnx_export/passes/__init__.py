"""Rewritings of a written ONNX model, one module each; `base` says what they have in common."""
