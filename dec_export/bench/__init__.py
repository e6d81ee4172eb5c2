"""Timing of engines and baselines, which take turns in one run, beside the measured peaks of the machine."""
