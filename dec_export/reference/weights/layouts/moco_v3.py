"""Checkpoints of MoCo v3, with a base encoder, a momentum encoder and a predictor.

Source: arXiv 2104.02057 and its code.
"""

from __future__ import annotations

from dec_export.reference.weights.layout import Checkpoint, Layout, Pretrained, any_below, below

_PREFIX = "base_encoder."


def _recognise(checkpoint: Checkpoint) -> bool:
    return any_below(_PREFIX, checkpoint.state)


def _read(checkpoint: Checkpoint) -> Pretrained:
    return below(_PREFIX, checkpoint.state, "MoCo v3")


def recognise_student(checkpoint: Checkpoint) -> bool:
    """Return whether there is a student that is a plain backbone."""
    return bool(checkpoint.part("student"))


def read_student(checkpoint: Checkpoint, program: str = "MoCo v3") -> Pretrained:
    """Return the student, which is the network that is trained; the teacher is its average."""
    layout = f"{program}, its student"
    return Pretrained(layout, checkpoint.part("student"), checkpoint.unused_entries(used="student"))


MOCO_V3 = Layout("keys that start with 'base_encoder.' (MoCo v3)", _recognise, _read)
MOCO_V3_STUDENT = Layout("'student' with a plain backbone (MoCo v3)", recognise_student, read_student)
