"""Names of the tensors of an exported model that are of interest, whatever its form."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

_AFTER_ALL = sys.maxsize
_SOLVER = r"solve_\d+_(?:iterate|image)_\d+"
_INNER = re.compile(rf"{_SOLVER}|phi_[xy]_\d+|features_\d+")
# The inliner appends a suffix to whatever comes out of a function.
_WRITTEN_OUT = re.compile(rf"({_SOLVER})__\w+")


def phi_names(layers: int) -> list[str]:
    """Names of the solved phis, in the order in which a model returns them."""
    return [f"phi_{axis}_{layer}" for layer in range(layers) for axis in "xy"]


def solve_name(layer: int) -> str:
    """Of the function that solves a layer."""
    return f"Solve{layer}V1"


def is_solve(function: str) -> bool:
    """Whether this is a name of `solve_name`."""
    return re.fullmatch(r"Solve\d+V1", function) is not None


def solver_tensor(layer: int, kind: str, k: int | str) -> str:
    """Of a layer's solve: its k-th iterate, or that iterate's image under f; (B, 2, R, R-1)."""
    return f"solve_{layer}_{kind}_{k}"


def feature_name(place: int) -> str:
    """Of what a block or stage of the backbone puts out, unwarped where the recipe says so."""
    return f"features_{place}"


def map_name(place: int) -> str:
    """Of the output that holds the feature map after a block or stage: (B, C, h, w) float32."""
    return f"feature_map_{place}"


def mapped_place(outputs: Iterable[str]) -> int | None:
    """The place that a model with these outputs shows by `map_name`; None when it shows none."""
    found = [re.fullmatch(r"feature_map_([0-9]{1,4})", name) for name in outputs]
    return next((int(match.group(1)) for match in found if match), None)


def is_output(name: str) -> bool:
    """Whether a tensor is judged by the gate: logits, phis and a feature map."""
    return name == "logits" or name.startswith("phi_") or is_map(name)


def is_map(name: str) -> bool:
    """Whether this is a name of `map_name`."""
    return name.startswith("feature_map_")


def is_inner(name: str) -> bool:
    """Whether this is a name that one of these functions gives."""
    return _INNER.fullmatch(name) is not None


def computation_order(names: Iterable[str]) -> list[str]:
    """Names of inner tensors and outputs in the order in which a model computes them, layer by layer."""

    def place(name: str) -> tuple[int, ...]:
        numbers = [int(number) for number in re.findall(r"\d+", name)]
        if name.startswith("solve_"):
            return (0, numbers[0], numbers[1], "image" in name)
        if name.startswith("phi_"):
            return (0, numbers[0], _AFTER_ALL, name.startswith("phi_y"))
        if name.startswith("features_"):
            return (1, *numbers, 0)
        return (1, *numbers, 1) if name.startswith("feature_map_") else (2,)

    return sorted(names, key=place)


def of_solver(name: str) -> bool:
    """Whether the tensor is made by a canonicalizer, not by the backbone."""
    return name.startswith(("phi_", "solve_"))


def describe(name: str) -> str:
    """Where a tensor of these names, or the logits, stands, in words."""
    numbers = re.findall(r"\d+", name)
    if name.startswith("solve_"):
        mixed = ", where iterates are mixed" if "iterate" in name else ""
        return f"canonicalizer {numbers[0]}, iteration {numbers[1]}{mixed}"
    if name.startswith("phi_"):
        return f"canonicalizer {numbers[0]}, its solution"
    return f"block or stage {numbers[0]} of the backbone" if name.startswith("feature") else "the head"


def original_name(name: str) -> str:
    """A tensor's name in the function that it was written out of, for the tensors of `solver_tensor`."""
    found = _WRITTEN_OUT.fullmatch(name)
    return found.group(1) if found else name
