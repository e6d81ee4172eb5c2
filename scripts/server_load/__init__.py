"""The parts of `scripts/soak.py`, which loads a server with many clients and watches it."""
