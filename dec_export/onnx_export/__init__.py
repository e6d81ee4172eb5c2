"""From a lowered model to one ONNX file."""
