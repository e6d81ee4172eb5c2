"""Whole models of dec-export or of the published DEC code, with keys under `DEM.` and `decoder.` beside a backbone."""

from __future__ import annotations

from dec_export.reference.weights.layout import BEYOND_BACKBONE, Checkpoint, Layout, Pretrained


def _recognise(checkpoint: Checkpoint) -> bool:
    return any(key.startswith(BEYOND_BACKBONE) for key in checkpoint.state)


def _read(checkpoint: Checkpoint) -> Pretrained:
    return Pretrained("a whole model", checkpoint.state, checkpoint.unused_entries())


DEC = Layout("keys that start with 'DEM.' or 'decoder.' (a whole DEC model)", _recognise, _read, is_plain=True)
