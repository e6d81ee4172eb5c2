"""The names of the tensors that a proof compares. They are equal in every form of an exported model.

A name is parsed once into a `TensorName`, whose properties describe the tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

Axis = Literal["x", "y"]


class Kind(Enum):
    """The kind of a tensor.

    LOGITS: (B, classes), or for segmentation (B, classes, H, W). PHI: one axis of a solved phi, (B, R, R-1).
    ITERATE: an iterate of a layer's solver, (B, 2, R, R-1). IMAGE: the iterate's image under the step f, of that shape.
    FEATURES: the output of a block or stage of the backbone in its own layout, after the inverse warp if the recipe has
    one there. FEATURE_MAP: the model's output with the feature map after a block or stage, (B, C, h, w) float32.
    """

    LOGITS = "logits"
    PHI = "phi"
    ITERATE = "iterate"
    IMAGE = "image"
    FEATURES = "features"
    FEATURE_MAP = "feature_map"


_PATTERNS = {
    Kind.LOGITS: re.compile(r"logits"),
    Kind.PHI: re.compile(r"phi_(?P<axis>[xy])_(?P<place>[0-9]{1,4})"),
    Kind.ITERATE: re.compile(r"solve_(?P<place>[0-9]{1,4})_iterate_(?P<k>[0-9]{1,4})"),
    Kind.IMAGE: re.compile(r"solve_(?P<place>[0-9]{1,4})_image_(?P<k>[0-9]{1,4})"),
    Kind.FEATURES: re.compile(r"features_(?P<place>[0-9]{1,4})"),
    Kind.FEATURE_MAP: re.compile(r"feature_map_(?P<place>[0-9]{1,4})"),
}
_AXES: dict[str | None, Axis] = {"x": "x", "y": "y"}
# The exporter's inliner appends a suffix to the name of every tensor that comes from a function.
_INLINED_SUFFIX = re.compile(r"__\w+$")


@dataclass(frozen=True)
class TensorName:
    """The parts of a tensor's name.

    place: the canonicalized layer of a PHI, ITERATE or IMAGE; the block or stage of FEATURES or a FEATURE_MAP.
    axis: the axis of a PHI. k: the number of an ITERATE or IMAGE. A part that the kind does not have is None.
    """

    kind: Kind
    place: int | None = None
    axis: Axis | None = None
    k: int | None = None

    @staticmethod
    def parse(text: str) -> TensorName | None:
        """Return the parts of a name, or None for a tensor that proofs do not compare."""
        for kind, pattern in _PATTERNS.items():
            found = pattern.fullmatch(text)
            if found:
                parts = found.groupdict()
                place, k = (None if parts.get(name) is None else int(parts[name]) for name in ("place", "k"))
                return TensorName(kind, place, _AXES.get(parts.get("axis")), k)
        return None

    def __str__(self) -> str:
        if self.kind is Kind.PHI:
            return f"phi_{self.axis}_{self.place}"
        if self.kind in (Kind.ITERATE, Kind.IMAGE):
            return f"solve_{self.place}_{self.kind.value}_{self.k}"
        return self.kind.value if self.place is None else f"{self.kind.value}_{self.place}"

    @property
    def is_output(self) -> bool:
        """Whether the gate judges this tensor, which holds for logits, phis and a feature map."""
        return self.kind in (Kind.LOGITS, Kind.PHI, Kind.FEATURE_MAP)

    @property
    def is_inner(self) -> bool:
        """Whether a model may hold this tensor without returning it."""
        return self.kind in (Kind.PHI, Kind.ITERATE, Kind.IMAGE, Kind.FEATURES)

    @property
    def of_solver(self) -> bool:
        """Whether a canonicalizer computes this tensor, and not the backbone or the head."""
        return self.kind in (Kind.PHI, Kind.ITERATE, Kind.IMAGE)

    @property
    def location(self) -> str:
        """The position of the tensor in the model, in words."""
        if self.kind is Kind.PHI:
            return f"canonicalizer {self.place}, its solution"
        if self.of_solver:
            mixed = ", where iterates are mixed" if self.kind is Kind.ITERATE else ""
            return f"canonicalizer {self.place}, iteration {self.k}{mixed}"
        return "the head" if self.kind is Kind.LOGITS else f"block or stage {self.place} of the backbone"

    @property
    def order(self) -> tuple[int, ...]:
        """A key that sorts tensors in the order of their computation: solvers, backbone, head."""
        place = -1 if self.place is None else self.place
        if self.kind is Kind.PHI:
            return (0, place, 1, int(self.axis == "y"))
        if self.of_solver:
            return (0, place, 0, self.k or 0, int(self.kind is Kind.IMAGE))
        return (2,) if self.kind is Kind.LOGITS else (1, place, int(self.kind is Kind.FEATURE_MAP))


LOGITS = str(TensorName(Kind.LOGITS))


def phi_name(axis: Axis, layer: int) -> str:
    """Return the name of one axis of a layer's solved phi."""
    return str(TensorName(Kind.PHI, layer, axis))


def phi_names(layers: int) -> list[str]:
    """Return the names of the solved phis, in the order in which a model returns them."""
    return [phi_name(axis, layer) for layer in range(layers) for axis in ("x", "y")]


def solve_name(layer: int) -> str:
    """Return the name of the function that solves a layer."""
    return f"Solve{layer}V1"


def is_solve(function: str) -> bool:
    """Return whether this is a name that `solve_name` gives."""
    return re.fullmatch(r"Solve\d+V1", function) is not None


def solver_tensor(layer: int, kind: Literal["iterate", "image"], k: int | str) -> str:
    """Return the name of a solver's k-th iterate, or of its image under f; inside a loop, k is a word."""
    return f"solve_{layer}_{kind}_{k}"


def feature_name(place: int) -> str:
    """Return the name of the output of a block or stage."""
    return str(TensorName(Kind.FEATURES, place))


def map_name(place: int) -> str:
    """Return the name of the model's output with the feature map after a block or stage."""
    return str(TensorName(Kind.FEATURE_MAP, place))


def parsed(names: Iterable[str]) -> list[TensorName]:
    """Parse the names, in their order, and leave out those of tensors that proofs do not compare."""
    return [name for text in names if (name := TensorName.parse(text)) is not None]


def of_kind(names: Iterable[str], kind: Kind) -> list[TensorName]:
    """Return the names of one kind, in their order."""
    return [name for name in parsed(names) if name.kind is kind]


def mapped_place(outputs: Iterable[str]) -> int | None:
    """Return the block or stage whose feature map is among these outputs, or None."""
    return next((name.place for name in of_kind(outputs, Kind.FEATURE_MAP)), None)


def layer_count(names: Iterable[str]) -> int:
    """Return the number of canonicalized layers whose solution is among these tensors."""
    return sum(name.axis == "x" for name in of_kind(names, Kind.PHI))


def is_output(name: str) -> bool:
    """Return whether the gate judges a tensor of this name."""
    found = TensorName.parse(name)
    return found is not None and found.is_output


def is_phi(name: str) -> bool:
    """Return whether this is the name of a solved phi."""
    found = TensorName.parse(name)
    return found is not None and found.kind is Kind.PHI


def is_map(name: str) -> bool:
    """Return whether this is the name of a feature map that is an output."""
    found = TensorName.parse(name)
    return found is not None and found.kind is Kind.FEATURE_MAP


def is_inner(name: str) -> bool:
    """Return whether this is the name of a tensor that proofs compare and that a model need not return."""
    found = TensorName.parse(name)
    return found is not None and found.is_inner


def of_solver(name: str) -> bool:
    """Return whether a canonicalizer computes the tensor of this name."""
    found = TensorName.parse(name)
    return found is not None and found.of_solver


def computation_order(names: Iterable[str]) -> list[str]:
    """Return the names of tensors that proofs compare, in the order of their computation."""
    return [str(name) for name in sorted(parsed(names), key=lambda name: name.order)]


def describe(name: str) -> str:
    """Return the position of a tensor in the model, in words. Raises KeyError for a name that has no parts."""
    found = TensorName.parse(name)
    if found is None:
        raise KeyError(name)
    return found.location


def original_name(name: str) -> str:
    """Return a solver tensor's name in the function from which it was inlined; other names are returned unchanged."""
    shorter = TensorName.parse(_INLINED_SUFFIX.sub("", name))
    return str(shorter) if shorter is not None and shorter.kind in (Kind.ITERATE, Kind.IMAGE) else name
