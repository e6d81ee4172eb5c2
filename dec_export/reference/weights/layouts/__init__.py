"""The layouts of checkpoints that are known; a new layout is a module of this folder and a line of `LAYOUTS`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from dec_export.errors import CheckpointError
from dec_export.reference.weights.layout import HEAD, Checkpoint, Layout, Pretrained
from dec_export.reference.weights.layouts.barlow_twins import BARLOW_TWINS, BARLOW_TWINS_ENTRIES
from dec_export.reference.weights.layouts.dec import DEC
from dec_export.reference.weights.layouts.dino import DINO
from dec_export.reference.weights.layouts.discrete import DISCRETE
from dec_export.reference.weights.layouts.moco_v3 import MOCO_V3, MOCO_V3_STUDENT
from dec_export.reference.weights.layouts.ser import (
    SER_BARLOW_TWINS,
    SER_DINO,
    SER_LINEAR_EVALUATION,
    SER_MOCO_V3,
    place_in_arguments,
)
from dec_export.reference.weights.layouts.soft_equivariance import SOFT_EQUIVARIANCE
from dec_export.reference.weights.layouts.timm import TIMM
from dec_export.reference.weights.layouts.torchvision import TORCHVISION
from dec_export.reference.weights.layouts.transformers import TRANSFORMERS

# The first layout that recognises a file reads it. Layouts with an entry of their own come before layouts that only
# their keys distinguish. Of the latter, a whole model comes first, because its other keys may be those of any backbone,
# and a plain state dict comes last, because the keys of other layouts may contain its keys.
LAYOUTS: tuple[Layout, ...] = (
    SER_DINO,
    DINO,
    SER_MOCO_V3,
    MOCO_V3_STUDENT,
    SER_LINEAR_EVALUATION,
    SOFT_EQUIVARIANCE,
    DEC,
    DISCRETE,
    MOCO_V3,
    BARLOW_TWINS,
    SER_BARLOW_TWINS,
    BARLOW_TWINS_ENTRIES,
    TRANSFORMERS,
    TIMM,
    TORCHVISION,
)


def layout_of(checkpoint: Checkpoint) -> Layout | None:
    """Return the layout of a checkpoint, or None if no layout recognises it.

    Raises CheckpointError when the content holds no weights.
    """
    return next((layout for layout in LAYOUTS if layout.recognises(checkpoint)), None)


def read_checkpoint(checkpoint: Checkpoint, expected: Collection[str] = ()) -> Pretrained:
    """Return the backbone in a checkpoint without the weights that only its training needs, or a whole model.

    `is_whole_model` distinguishes the two. expected: the keys of the recipe's backbone, which are kept in any case.
    Raises CheckpointError when the content holds no weights, or when no layout recognises it.
    """
    layout = layout_of(checkpoint)
    if layout is None:
        names = ", ".join(list(checkpoint.state)[:3]) or "no weights"
        raise CheckpointError(
            f"'{checkpoint.path}' holds no vision transformer in a layout that is known: found {names}; expected one "
            f"of {'; '.join(known.marks for known in LAYOUTS)}. Give the checkpoint of the backbone."
        )
    found = replace(layout.read(checkpoint), insert_at=place_in_arguments(checkpoint))
    if found.is_whole_model:
        return found
    return found.without([key for key in found.weights if key not in expected and _only_for_training(key)])


def _only_for_training(key: str) -> bool:
    """Return whether a weight belongs to SER's equivariance loss or to a projection head.

    `head` is the name of a projection head and of a linear classifier. A classifier, which has the keys `HEAD`, stays.
    """
    return key.startswith("norm_equiv.") or (key.startswith("head.") and key not in HEAD)
