"""Rewritings of a written ONNX model, one module each."""
