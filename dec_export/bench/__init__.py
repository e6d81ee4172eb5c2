"""Comparisons whose ratios mean something: everything in one run, interleaved, beside what the machine can do."""
