"""Checkpoints of the published code of SER (arXiv 2603.06693): MoCo v3, DINO, Barlow Twins and linear evaluation.

The transformer of SER has the names of timm's, but its `pos_embed` has no row for a class token that joins late. Its
ResNet-50 has the names of torchvision's, but its classifier is called `head`. The checkpoints hold the losses and the
arguments of the training, which distinguish them from those of other programs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from dec_export.reference.weights.layout import HEAD, RESIDUAL_HEAD, Checkpoint, Layout, Pretrained, is_residual
from dec_export.reference.weights.layouts.barlow_twins import read_entries, recognise_entries
from dec_export.reference.weights.layouts.dino import read_dino, recognise_dino
from dec_export.reference.weights.layouts.moco_v3 import read_student, recognise_student

# The `equiv_layer` of a training without regularisation, in which the class token joins before the first block.
_BASELINE = 12
_CLASSIFIER = ("linear.weight", "linear.bias")


def is_of_ser(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint holds the losses or the arguments that the training programs of SER store."""
    return checkpoint.has_entry("loss_list_inv") or "equiv_layer" in checkpoint.arguments


def place_in_arguments(checkpoint: Checkpoint) -> int | None:
    """Return the block before which the class token joins, by `equiv_layer`; None without such an argument."""
    layer = checkpoint.arguments.get("equiv_layer")
    if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer <= _BASELINE:
        return None
    return 0 if layer == _BASELINE else layer


def _recognise_linear_evaluation(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.part("encoder")) and set(checkpoint.part("state_dict")) == set(_CLASSIFIER)


def _read_linear_evaluation(checkpoint: Checkpoint) -> Pretrained:
    """Return the backbone with its classifier.

    The classifier reads the class tokens of a transformer's last blocks, or the pooled map of a residual network.
    """
    classifier, encoder = checkpoint.part("state_dict"), checkpoint.part("encoder")
    keys = RESIDUAL_HEAD if is_residual(encoder) else HEAD
    head = {key: classifier[name] for key, name in zip(keys, _CLASSIFIER, strict=True)}
    return Pretrained("linear evaluation of SER", {**encoder, **head}, Counter(), of_ser=True)


def _layout(
    program: str, recognise: Callable[[Checkpoint], bool], read: Callable[[Checkpoint, str], Pretrained], marks: str
) -> Layout:
    """Return the layout of another program's checkpoints as SER's code writes them."""
    return Layout(
        f"{marks}, with SER's losses or arguments ({program} of SER)",
        lambda checkpoint: is_of_ser(checkpoint) and recognise(checkpoint),
        lambda checkpoint: replace(read(checkpoint, f"{program} of SER"), of_ser=True),
    )


SER_DINO = _layout("DINO", recognise_dino, read_dino, "'teacher' or 'student' with keys that start with 'backbone.'")
SER_MOCO_V3 = _layout("MoCo v3", recognise_student, read_student, "'student' with a plain backbone")
SER_BARLOW_TWINS = _layout("Barlow Twins", recognise_entries, read_entries, "'projector_inv' beside a state dict")
SER_LINEAR_EVALUATION = Layout(
    "'encoder' beside a 'state_dict' of one linear layer (linear evaluation of SER)",
    _recognise_linear_evaluation,
    _read_linear_evaluation,
)
