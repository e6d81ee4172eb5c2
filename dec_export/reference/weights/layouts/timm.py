"""State dicts of a vision transformer under timm's names, without any other entries."""

from __future__ import annotations

import re

from dec_export.reference.weights.layout import Checkpoint, Layout, Pretrained

BLOCK = re.compile(r"blocks\.([0-9]{1,4})\.")


def _recognise(checkpoint: Checkpoint) -> bool:
    return any(BLOCK.match(key) for key in checkpoint.state)


def _read(checkpoint: Checkpoint) -> Pretrained:
    return Pretrained("a state dict", checkpoint.state, checkpoint.unused_entries())


TIMM = Layout(
    "keys such as 'blocks.0.attn.qkv.weight' (a vision transformer's state dict)", _recognise, _read, is_plain=True
)
