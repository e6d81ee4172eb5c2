"""State dicts of a residual network under the names of torchvision, which are timm's as well, without other entries.

The published ResNet-50 of DINO and of Barlow Twins are such files, without a classifier.
"""

from __future__ import annotations

from dec_export.reference.weights.layout import Checkpoint, Layout, Pretrained, is_residual


def _recognise(checkpoint: Checkpoint) -> bool:
    return is_residual(checkpoint.state)


def _read(checkpoint: Checkpoint) -> Pretrained:
    return Pretrained("a state dict", checkpoint.state, checkpoint.unused_entries())


TORCHVISION = Layout(
    "keys such as 'layer1.0.conv1.weight' (a residual network's state dict)", _recognise, _read, is_plain=True
)
