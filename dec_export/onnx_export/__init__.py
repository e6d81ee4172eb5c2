"""The export of a lowered model to one ONNX file."""
