"""The parts of `scripts/gpu_solver.py`, which times the plugin's kernels on a GPU."""
