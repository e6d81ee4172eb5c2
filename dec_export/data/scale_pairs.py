"""Images of one scene at several scales, which are known by the names of their files.

The naming is that of the multi-scale ImageNet of arXiv 2508.14187: `CLASS/NAME_scale_0.7.JPEG`, where the folder names
the class, and files of one class and NAME show one scene. The suffix may be that of any image, in capitals or not.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

_NAME = re.compile(r"(?P<scene>.+)_scale_(?P<scale>\d{1,3}(?:\.\d{1,6})?)\.[^.]+", re.DOTALL)
# Images may hold numbers of any kind.
_Values = TypeVar("_Values", bound=NDArray[Any])
_Group = dict[float, int]


class ScaledName(NamedTuple):
    """The name of a file taken apart.

    scene: what is shown, as the name of the folder with the class and NAME. scale: the scale of the image.
    """

    scene: tuple[str, str]
    scale: float


@dataclass(frozen=True)
class LeftOut:
    """The numbers of scenes of two images or more that are left out, by reason.

    without_scale_1: no image has scale 1. repeated_scale: two images have one scale, such as `1` and `1.0`.
    other_scales: the scales are not those of most scenes.
    """

    without_scale_1: int = 0
    repeated_scale: int = 0
    other_scales: int = 0

    @property
    def count(self) -> int:
        """The number of all scenes that are left out."""
        return self.without_scale_1 + self.repeated_scale + self.other_scales


@dataclass(frozen=True)
class ScaleGroups:
    """Scenes at equal scales.

    scales: the S scales, of which the first is 1 and the others ascend; empty without scenes.
    places: the places of each scene's images in the list of names, (scenes, S) int64.
    """

    scales: tuple[float, ...]
    places: NDArray[np.int64]
    left_out: LeftOut

    def __len__(self) -> int:
        return len(self.places)

    def arrange(self, values: _Values) -> NDArray[Any]:
        """Return values (N, ...), one for each name, as (scenes, S, ...)."""
        arranged: NDArray[Any] = values[self.places]
        return arranged


def parse(name: str) -> ScaledName | None:
    """Return what the name of a file says, or None if it does not follow the naming, or if its scale is 0.

    name: the file's name, with or without folders, of which the last one names the class.
    """
    path = PurePath(name)
    found = _NAME.fullmatch(path.name)
    if found is None or not float(found["scale"]):
        return None
    return ScaledName((path.parent.name, found["scene"]), float(found["scale"]))


def group_by_scale(names: Sequence[str]) -> ScaleGroups:
    """Return the scenes that the names show at equal scales, in the order of their first names.

    The scales are those that most scenes have; of two sets of scales that are equally frequent, the smaller one is
    taken, and then the one that comes first. The published program takes the scenes with the most frequent *number* of
    images, which are the same ones wherever scenes with equally many images have equal scales. It would take the
    smallest scale of a scene in place of scale 1; such scenes are left out here. A single image is no scene.
    """
    groups, repeated = _collect(names)
    with_1 = [group for group in groups if 1.0 in group]
    counts = Counter(frozenset(group) for group in with_1)
    # `max` returns the first of equal ones, and a Counter keeps the order of names.
    chosen = max(counts, key=lambda scales: (counts[scales], -len(scales)), default=frozenset[float]())
    scales = tuple(sorted(chosen, key=lambda scale: (scale != 1.0, scale)))
    kept = [[group[scale] for scale in scales] for group in with_1 if set(group) == chosen]
    left_out = LeftOut(len(groups) - len(with_1), repeated, len(with_1) - len(kept))
    return ScaleGroups(scales, np.asarray(kept, np.int64).reshape(len(kept), len(scales)), left_out)


def whole_groups(names: Sequence[str], count: int) -> list[int]:
    """Return the places of the first `count` names, and of all further names that show a scene of these."""
    parsed = [parse(name) for name in names]
    started = {found.scene for found in parsed[:count] if found is not None}
    return [
        place for place, found in enumerate(parsed) if place < count or (found is not None and found.scene in started)
    ]


def _collect(names: Iterable[str]) -> tuple[list[_Group], int]:
    """Return the place of each scale of every scene of two images or more, and the number of scenes with equal scales.

    Scenes of which two images have one scale are counted only.
    """
    scenes: Mapping[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for place, name in enumerate(names):
        found = parse(name)
        if found is not None:
            scenes[found.scene].append((found.scale, place))
    several = [pairs for pairs in scenes.values() if len(pairs) > 1]
    groups = [dict(pairs) for pairs in several if len(dict(pairs)) == len(pairs)]
    return groups, len(several) - len(groups)
