"""Checkpoints of DINO, with a teacher and a student of a backbone and a projection head each.

Source: arXiv 2104.14294 and its code.
"""

from __future__ import annotations

from dec_export.reference.weights.layout import Checkpoint, Layout, Pretrained, any_below, below

_PREFIX = "backbone."


def recognise_dino(checkpoint: Checkpoint) -> bool:
    """Return whether there is a teacher or a student with a backbone of its own."""
    return _network(checkpoint) is not None


def read_dino(checkpoint: Checkpoint, program: str = "DINO") -> Pretrained:
    """Return the teacher's backbone, which DINO evaluates, or the student's if no teacher was stored."""
    name = _network(checkpoint)
    assert name is not None, "read_dino reads what recognise_dino recognises"
    layout = f"{program}, its {name}"
    return below(_PREFIX, checkpoint.part(name), layout, checkpoint.unused_entries(used=name))


def _network(checkpoint: Checkpoint) -> str | None:
    return next((name for name in ("teacher", "student") if any_below(_PREFIX, checkpoint.part(name))), None)


DINO = Layout("'teacher' or 'student' with keys that start with 'backbone.' (DINO)", recognise_dino, read_dino)
