"""Checkpoints of Barlow Twins, with a backbone beside a projector. Source: arXiv 2103.03230 and its code."""

from __future__ import annotations

from dec_export.reference.weights.layout import Checkpoint, Layout, Pretrained, any_below, below

_PREFIX = "backbone."


def _recognise(checkpoint: Checkpoint) -> bool:
    return any_below(_PREFIX, checkpoint.state)


def _read(checkpoint: Checkpoint) -> Pretrained:
    return below(_PREFIX, checkpoint.state, "Barlow Twins")


def recognise_entries(checkpoint: Checkpoint) -> bool:
    """Return whether the projector is an entry of its own beside a state dict."""
    return bool(checkpoint.part("projector_inv"))


def read_entries(checkpoint: Checkpoint, program: str = "Barlow Twins") -> Pretrained:
    """Return the backbone, which is the whole state dict."""
    return Pretrained(program, checkpoint.state, checkpoint.unused_entries())


BARLOW_TWINS = Layout("keys that start with 'backbone.' (Barlow Twins)", _recognise, _read)
BARLOW_TWINS_ENTRIES = Layout("'projector_inv' beside a state dict (Barlow Twins)", recognise_entries, read_entries)
