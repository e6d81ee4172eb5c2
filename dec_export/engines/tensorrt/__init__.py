"""TensorRT and TensorRT for RTX: one code path, driven through Polygraphy."""
