"""The layout of a program's checkpoints: how its files are recognised, and which tensors are the backbone's.

`dec_export.reference.weights.layouts` lists the layouts that are known.
"""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from dec_export.reference.weights.files import Weights, find_state_dict, strip_prefixes

# The keys of a linear classifier on a transformer, and on a residual network.
HEAD = ("head.weight", "head.bias")
RESIDUAL_HEAD = ("fc.weight", "fc.bias")
# The prefix of the keys of a residual network's first stage, which no transformer has.
_RESIDUAL = "layer1."
# The prefixes of the keys that a model of dec-export has beside those of its backbone.
BEYOND_BACKBONE = ("DEM.", "decoder.")
# The entries of a checkpoint with weights that only the training needs.
_TRAINING_PARTS = ("student", "teacher", "projector_inv", "projector_equiv")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file, unchanged; `path` names the file in errors."""

    content: object
    path: Path

    @cached_property
    def state(self) -> Weights:
        """The tensors of its state dict, without the prefixes of wrappers; raises CheckpointError without one."""
        return strip_prefixes(find_state_dict(self.content, self.path))

    def part(self, name: str) -> Weights:
        """Return the tensors under an entry of a training checkpoint; there are none without such an entry."""
        part = self.content.get(name) if isinstance(self.content, Mapping) else None
        return strip_prefixes(part) if isinstance(part, Mapping) else {}

    def has_entry(self, name: str) -> bool:
        """Return whether the content is a mapping with an entry of this name."""
        return isinstance(self.content, Mapping) and name in self.content

    @property
    def arguments(self) -> Mapping[str, object]:
        """The arguments of the program that wrote the checkpoint; empty when they were not stored."""
        arguments = self.content.get("args") if isinstance(self.content, Mapping) else None
        found = vars(arguments) if isinstance(arguments, Namespace) else arguments
        return found if isinstance(found, Mapping) else {}

    def unused_entries(self, used: str | None = None) -> Counter[str]:
        """Return the number of tensors in each entry that only the training needs, without the entry `used`."""
        return +Counter({name: len(self.part(name)) for name in _TRAINING_PARTS if name != used})


@dataclass(frozen=True)
class Pretrained:
    """The part of a checkpoint that is a backbone, or a backbone with its linear classifier.

    layout: the name of the file's layout in messages.
    weights: the tensors under timm's keys; `pos_embed` of a transformer is (1, patches, C) or (1, 1 + patches, C).
    dropped: the number of tensors that were left out, by the first part of their keys.
    insert_at: the block before which a transformer's class token joins; None when it is not known.
    of_ser: whether the published code of SER wrote the file, in a layout of its own.
    names: the file's own keys of weights that have another key in `weights`.
    """

    layout: str
    weights: Weights
    dropped: Counter[str]
    insert_at: int | None = None
    of_ser: bool = False
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def dropped_in_words(self) -> str:
        """The end of a sentence, as "; dropped: momentum_encoder.* (152)"; empty when every tensor was used."""
        groups = ", ".join(f"{part}.* ({count})" for part, count in self.dropped.items())
        return f"; dropped: {groups}" if groups else ""

    @property
    def is_whole_model(self) -> bool:
        """Whether the weights are those of a model of dec-export with a canonicalizer or a segmentation head."""
        return any(key.startswith(BEYOND_BACKBONE) for key in self.weights)

    def without(self, keys: list[str]) -> Pretrained:
        """Return a copy without the weights under these keys, which are counted as dropped."""
        left_out = frozenset(keys)
        weights = {key: value for key, value in self.weights.items() if key not in left_out}
        return replace(self, weights=weights, dropped=self.dropped + Counter(key.split(".")[0] for key in keys))


@dataclass(frozen=True)
class Layout:
    """The layout in which one program writes its checkpoints.

    marks: a description of the layout in messages, as "keys that start with 'base_encoder.' (MoCo v3)".
    recognises: a function that returns whether a checkpoint has this layout.
    read: a function that returns the backbone in a checkpoint of this layout.
    is_plain: whether the checkpoint is a bare state dict, which may as well be that of a whole model.
    """

    marks: str
    recognises: Callable[[Checkpoint], bool]
    read: Callable[[Checkpoint], Pretrained]
    is_plain: bool = False


def below(prefix: str, state: Weights, layout: str, dropped: Counter[str] | None = None) -> Pretrained:
    """Return the weights under one prefix; the others are counted as dropped."""
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    others = Counter(key.split(".")[0] for key in state if not key.startswith(prefix))
    return Pretrained(layout, weights, others + (dropped or Counter()))


def any_below(prefix: str, state: Weights) -> bool:
    """Return whether some key starts with the prefix."""
    return any(key.startswith(prefix) for key in state)


def is_residual(weights: Weights) -> bool:
    """Return whether these are the weights of a residual network, under the names of torchvision and timm."""
    return any_below(_RESIDUAL, weights)
