"""The engines of TensorRT and TensorRT for RTX, which share one code path through Polygraphy."""
