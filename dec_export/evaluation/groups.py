"""The groups of a data set's images: per scale, per corruption and severity, and per scene.

Rows are the places of images in columns, such as those of `results.Table`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dec_export.data.scale_pairs import ScaleGroups, group_by_scale
from dec_export.errors import DataError
from dec_export.evaluation.samples import Sample
from dec_export.tasks.arrays import Array
from dec_export.tasks.measures import scale_distances

SCALE, SCENE, CORRUPTION, SEVERITY = "scale", "scene", "corruption", "severity"

Rows = NDArray[np.int64]


class Corrupted(NamedTuple):
    """A corruption at a severity."""

    corruption: str
    severity: int


def values_of(samples: Sequence[Sample], group: str) -> tuple[str, ...]:
    """Return the values of a group among images, numbers in ascending order and before words; empty without it."""
    return tuple(sorted({sample.groups[group] for sample in samples if group in sample.groups}, key=_order))


def rows_by_value(samples: Sequence[Sample], group: str) -> dict[str, Rows]:
    """Return the rows of the images with each value of a group, in the order of `values_of`."""
    rows: dict[str, list[int]] = {value: [] for value in values_of(samples, group)}
    for row, sample in enumerate(samples):
        if group in sample.groups:
            rows[sample.groups[group]].append(row)
    return {value: np.array(found, np.int64) for value, found in rows.items()}


def rows_by_corruption(samples: Sequence[Sample]) -> dict[Corrupted, Rows]:
    """Return the rows of the images of each corruption and severity, of a data set in ImageNet-C's layout."""
    rows: dict[Corrupted, list[int]] = {}
    for row, sample in enumerate(samples):
        if CORRUPTION in sample.groups:
            key = Corrupted(sample.groups[CORRUPTION], int(sample.groups[SEVERITY]))
            rows.setdefault(key, []).append(row)
    return {key: np.array(rows[key], np.int64) for key in sorted(rows)}


def _order(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return np.inf, value


def corruption_errors(errors: Mapping[Corrupted, float]) -> dict[str, float]:
    """Return the error rate of each corruption, as the mean over its severities, which count equally.

    errors: the share of wrong images, in [0, 1], of each corruption at each severity.
    """
    found: dict[str, list[float]] = {}
    for (corruption, _), error in errors.items():
        found.setdefault(corruption, []).append(error)
    return {corruption: float(np.mean(values)) for corruption, values in found.items()}


def mean_corruption_error(
    errors: Mapping[Corrupted, float], baseline: Mapping[Corrupted, float] | None = None
) -> float:
    """Return the mean corruption error, mCE.

    Without a baseline it is the mean of `corruption_errors`, in [0, 1]. With the errors of a baseline, such as those of
    AlexNet, it is that of arXiv 1903.12261, section 4.1: the mean over corruptions of the sum of the errors over
    severities, divided by that of the baseline; then it is 1 for a model as good as the baseline. The paper gives both
    in percent. NaN is returned without corruptions.

    Raises:
        DataError: if the baseline lacks a corruption or severity, or makes no error under a corruption.
    """
    found = corruption_errors(errors)
    if not found:
        return float("nan")
    if baseline is None:
        return float(np.mean(list(found.values())))
    missing = next((key for key in errors if key not in baseline), None)
    if missing is not None:
        raise DataError(f"The baseline has no error of {missing.corruption} at severity {missing.severity}: add it.")
    expected = corruption_errors({key: baseline[key] for key in errors})
    perfect = next((corruption for corruption, error in expected.items() if not error > 0), None)
    if perfect is not None:
        raise DataError(f"The baseline makes no error under {perfect}, and no error can be compared with it: leave it.")
    return float(np.mean([found[corruption] / expected[corruption] for corruption in found]))


class SceneDistances(NamedTuple):
    """The terms of eq_loss: || softmax M(x_s) - softmax M(x_1) ||_2 of each scene and scale.

    scales: the S scales, of which the first is 1. scenes: the names of the scenes. distances: (scenes, S), whose first
    column is zero. left_out: the scenes of two images or more that do not have these scales.
    """

    scales: tuple[float, ...]
    scenes: tuple[str, ...]
    distances: NDArray[np.float64]
    left_out: int

    @property
    def eq_loss(self) -> float:
        """The published eq_loss: the mean over scenes and all scales; NaN without scenes."""
        return float(self.distances.mean()) if len(self.scenes) else float("nan")

    def at_scales(self) -> dict[float, float]:
        """Return the mean distance at each scale but 1; empty without scenes."""
        means = self.distances.mean(axis=0) if len(self.scenes) else []
        return dict(zip(self.scales[1:], map(float, means[1:]), strict=False))


def scene_distances(samples: Sequence[Sample], parts: Iterable[tuple[Rows, Array]]) -> SceneDistances:
    """Return the distances of all scenes of a data set in the multi-scale naming (`data.scale_pairs`).

    Only the logits of scenes that have begun are kept, which are few if the images of a scene follow one another.

    Args:
        samples: the images that were evaluated.
        parts: their logits (n, classes) with their rows (n,), in parts and in any order.
    """
    groups = group_by_scale([sample.name for sample in samples])
    found = dict(_finished(groups, parts))
    scenes = sorted(found)
    names = tuple(samples[groups.places[scene, 0]].groups.get(SCENE, "") for scene in scenes)
    distances = np.array([found[scene] for scene in scenes]).reshape(len(scenes), len(groups.scales))
    return SceneDistances(groups.scales, names, distances, groups.left_out.count)


def _finished(groups: ScaleGroups, parts: Iterable[tuple[Rows, Array]]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Return the distances of each scene, as soon as the logits of all its images are there."""
    place_of = {int(row): divmod(place, len(groups.scales)) for place, row in enumerate(groups.places.flat)}
    begun: dict[int, dict[int, Array]] = {}
    for rows, logits in parts:
        for row, values in zip(rows, logits, strict=True):
            if int(row) not in place_of:
                continue
            scene, scale = place_of[int(row)]
            begun.setdefault(scene, {})[scale] = values
            if len(begun[scene]) == len(groups.scales):
                found = begun.pop(scene)
                ordered = np.stack([found[scale] for scale in range(len(groups.scales))])
                yield scene, scale_distances(ordered[None])[0]
