"""The functions that the commands call: `build` exports and proves a model, and `prove` proves an engine again."""
