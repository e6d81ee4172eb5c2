"""The layout of a data set's files, and the options with which it is read.

A new layout is one module of this folder and its entry in `LAYOUTS` of `dec_export.evaluation.layouts.registry`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dec_export.evaluation.samples import DataSet


@dataclass(frozen=True)
class DataOptions:
    """How a data set is read.

    class_index: a file that gives the number of each class; None numbers the names of classes in alphabetical order.
    ignored: the value of a mask's pixels that do not count. layout: the name of the layout; None recognises it.
    """

    class_index: Path | None = None
    ignored: int | None = None
    layout: str | None = None


@dataclass(frozen=True)
class DataLayout:
    """One way in which the files of a data set are arranged.

    name: the name by which a user chooses it. summary: how its files lie, in words.
    recognises: whether a file or folder has this layout; it reads names, and no images.
    read: the data set in it. Raises DataError, in one sentence, when the files do not fit the layout.
    labelled: whether its images have labels.
    """

    name: str
    summary: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, DataOptions], DataSet]
    labelled: bool = True
