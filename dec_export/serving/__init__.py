"""From a bundle to a model repository of Triton Inference Server, and a client that checks a running one."""
