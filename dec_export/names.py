"""The names of an exported model's tensors that are of interest, whatever form the model has.

A name is parsed once, into a `TensorName`; what is to be known of the tensor is then a property of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

Axis = Literal["x", "y"]


class Kind(Enum):
    """What a tensor is.

    LOGITS: (B, classes), or for segmentation (B, classes, H, W). PHI: one axis of a solved phi, (B, R, R-1).
    ITERATE: an iterate of a layer's solver, (B, 2, R, R-1). IMAGE: that iterate's image under the step f.
    FEATURES: what a block or stage of the backbone puts out, in its own layout, unwarped where the recipe says so.
    FEATURE_MAP: the output that holds the feature map after a block or stage, (B, C, h, w) float32.
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
# The exporter's inliner appends a suffix to whatever comes out of a function.
_INLINED_SUFFIX = re.compile(r"__\w+$")


@dataclass(frozen=True)
class TensorName:
    """A tensor's name, taken apart.

    place: the canonicalized layer of a PHI, ITERATE or IMAGE; the block or stage of FEATURES or a FEATURE_MAP.
    axis: of a PHI. k: number of the iterate. What a kind does not have is None.
    """

    kind: Kind
    place: int | None = None
    axis: Axis | None = None
    k: int | None = None

    @staticmethod
    def parse(text: str) -> TensorName | None:
        """The parts of a name, or None for a tensor that is of no interest."""
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
        """Whether the gate judges this tensor: logits, phis and a feature map."""
        return self.kind in (Kind.LOGITS, Kind.PHI, Kind.FEATURE_MAP)

    @property
    def is_inner(self) -> bool:
        """Whether a model may hold this tensor without returning it."""
        return self.kind in (Kind.PHI, Kind.ITERATE, Kind.IMAGE, Kind.FEATURES)

    @property
    def of_solver(self) -> bool:
        """Whether a canonicalizer makes this tensor, and not the backbone or the head."""
        return self.kind in (Kind.PHI, Kind.ITERATE, Kind.IMAGE)

    @property
    def location(self) -> str:
        """Where the tensor stands in the model, in words."""
        if self.kind is Kind.PHI:
            return f"canonicalizer {self.place}, its solution"
        if self.of_solver:
            mixed = ", where iterates are mixed" if self.kind is Kind.ITERATE else ""
            return f"canonicalizer {self.place}, iteration {self.k}{mixed}"
        return "the head" if self.kind is Kind.LOGITS else f"block or stage {self.place} of the backbone"

    @property
    def order(self) -> tuple[int, ...]:
        """A key that sorts tensors in the order in which a model computes them: solvers, backbone, head."""
        place = -1 if self.place is None else self.place
        if self.kind is Kind.PHI:
            return (0, place, 1, int(self.axis == "y"))
        if self.of_solver:
            return (0, place, 0, self.k or 0, int(self.kind is Kind.IMAGE))
        return (2,) if self.kind is Kind.LOGITS else (1, place, int(self.kind is Kind.FEATURE_MAP))


LOGITS = str(TensorName(Kind.LOGITS))


def phi_name(axis: Axis, layer: int) -> str:
    """The name of one axis of a layer's solved phi."""
    return str(TensorName(Kind.PHI, layer, axis))


def phi_names(layers: int) -> list[str]:
    """The names of the solved phis, in the order in which a model returns them."""
    return [phi_name(axis, layer) for layer in range(layers) for axis in ("x", "y")]


def solve_name(layer: int) -> str:
    """The name of the function that solves a layer."""
    return f"Solve{layer}V1"


def is_solve(function: str) -> bool:
    """Whether this is a name that `solve_name` gives."""
    return re.fullmatch(r"Solve\d+V1", function) is not None


def solver_tensor(layer: int, kind: Literal["iterate", "image"], k: int | str) -> str:
    """The name of a solver's k-th iterate, or of its image under f; k is a word inside a loop."""
    return f"solve_{layer}_{kind}_{k}"


def feature_name(place: int) -> str:
    """The name of what a block or stage puts out."""
    return str(TensorName(Kind.FEATURES, place))


def map_name(place: int) -> str:
    """The name of the output that holds the feature map after a block or stage."""
    return str(TensorName(Kind.FEATURE_MAP, place))


def parsed(names: Iterable[str]) -> list[TensorName]:
    """Those of the names that are of interest, taken apart, in their order."""
    return [name for text in names if (name := TensorName.parse(text)) is not None]


def of_kind(names: Iterable[str], kind: Kind) -> list[TensorName]:
    """Those of the names that are of one kind, in their order."""
    return [name for name in parsed(names) if name.kind is kind]


def mapped_place(outputs: Iterable[str]) -> int | None:
    """The block or stage whose feature map a model with these outputs returns; None when it returns none."""
    return next((name.place for name in of_kind(outputs, Kind.FEATURE_MAP)), None)


def layer_count(names: Iterable[str]) -> int:
    """How many canonicalized layers have their solution among these tensors."""
    return sum(name.axis == "x" for name in of_kind(names, Kind.PHI))


def is_output(name: str) -> bool:
    """Whether the gate judges a tensor of this name."""
    found = TensorName.parse(name)
    return found is not None and found.is_output


def is_phi(name: str) -> bool:
    """Whether this is the name of a solved phi."""
    found = TensorName.parse(name)
    return found is not None and found.kind is Kind.PHI


def is_map(name: str) -> bool:
    """Whether this is the name of a feature map that is an output."""
    found = TensorName.parse(name)
    return found is not None and found.kind is Kind.FEATURE_MAP


def is_inner(name: str) -> bool:
    """Whether this is the name of a tensor of interest that a model need not return."""
    found = TensorName.parse(name)
    return found is not None and found.is_inner


def of_solver(name: str) -> bool:
    """Whether a canonicalizer makes the tensor of this name."""
    found = TensorName.parse(name)
    return found is not None and found.of_solver


def computation_order(names: Iterable[str]) -> list[str]:
    """The names of interest in the order in which a model computes their tensors, layer by layer."""
    return [str(name) for name in sorted(parsed(names), key=lambda name: name.order)]


def describe(name: str) -> str:
    """Where a tensor of interest stands in the model, in words; KeyError for another."""
    found = TensorName.parse(name)
    if found is None:
        raise KeyError(name)
    return found.location


def original_name(name: str) -> str:
    """A solver tensor's name in the function that it was inlined from; other names stay as they are."""
    shorter = TensorName.parse(_INLINED_SUFFIX.sub("", name))
    return str(shorter) if shorter is not None and shorter.kind in (Kind.ITERATE, Kind.IMAGE) else name
