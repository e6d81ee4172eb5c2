"""What a layout of checkpoints is: how a file of it is known, and which of its tensors are the backbone's.

`dec_export.reference.weights.layouts` lists those that are known.
"""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dec_export.reference.weights.files import Weights, find_state_dict, strip_prefixes

# Keys of a linear classifier on a backbone.
HEAD = ("head.weight", "head.bias")
# Keys of a model as dec-export publishes it, beside the backbone's own.
BEYOND_BACKBONE = ("DEM.", "decoder.")
# Entries with weights that only the training needs.
_TRAINING_PARTS = ("student", "teacher", "projector_inv", "projector_equiv")


@dataclass(frozen=True)
class Checkpoint:
    """A file as it was read: `content` is whatever a training program stored, `path` names it in errors."""

    content: Any  # a pickle's content has no type until its layout is known
    path: Path

    @cached_property
    def state(self) -> Weights:
        """The tensors of its state dict, without the prefixes of wrappers; CheckpointError when it has none."""
        return strip_prefixes(find_state_dict(self.content, self.path))

    def part(self, name: str) -> Weights:
        """The tensors under an entry of a training checkpoint; none when there is no such entry."""
        part = self.content.get(name) if isinstance(self.content, Mapping) else None
        return strip_prefixes(part) if isinstance(part, Mapping) else {}

    def has_entry(self, name: str) -> bool:
        """Whether it is a mapping with an entry of this name."""
        return isinstance(self.content, Mapping) and name in self.content

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The command line of the program that wrote the checkpoint; empty when there is none."""
        arguments = self.content.get("args") if isinstance(self.content, Mapping) else None
        found = vars(arguments) if isinstance(arguments, Namespace) else arguments
        return found if isinstance(found, Mapping) else {}

    def unused_entries(self, used: str | None = None) -> Counter[str]:
        """How many tensors lie in each entry that only the training needs, except for the used one."""
        return +Counter({name: len(self.part(name)) for name in _TRAINING_PARTS if name != used})


@dataclass(frozen=True)
class Pretrained:
    """The part of a checkpoint that is a backbone, or a backbone with its linear classifier.

    layout: name of the file's layout, for people.
    weights: under `LateClassToken`'s keys; `pos_embed` is (1, patches, C) or (1, 1 + patches, C).
    dropped: how many tensors were left out, by the first part of their keys.
    insert_at: block before which the class token joins; None when that is not known.
    of_ser: whether the published code of SER wrote the file, in a layout of its own.
    """

    layout: str
    weights: Weights
    dropped: Counter[str]
    insert_at: int | None = None
    of_ser: bool = False

    @property
    def dropped_in_words(self) -> str:
        """Such as "; dropped: momentum_encoder.* (152), head.* (8)"; empty when everything was used."""
        groups = ", ".join(f"{part}.* ({count})" for part, count in self.dropped.items())
        return f"; dropped: {groups}" if groups else ""

    @property
    def is_whole_model(self) -> bool:
        """Whether it is not a backbone but a model of dec-export, with a canonicalizer or a segmentation head."""
        return any(key.startswith(BEYOND_BACKBONE) for key in self.weights)

    def without(self, keys: list[str]) -> Pretrained:
        """A copy without the weights under these keys, which count as dropped."""
        left_out = frozenset(keys)
        weights = {key: value for key, value in self.weights.items() if key not in left_out}
        return replace(self, weights=weights, dropped=self.dropped + Counter(key.split(".")[0] for key in keys))


@dataclass(frozen=True)
class Layout:
    """One way in which a program writes its checkpoints.

    marks: the facts by which a file is known, for people, such as "keys that start with 'base_encoder.' (MoCo v3)".
    recognises: whether a checkpoint has them. read: the backbone in a checkpoint that has them.
    """

    marks: str
    recognises: Callable[[Checkpoint], bool]
    read: Callable[[Checkpoint], Pretrained]


def below(prefix: str, state: Weights, layout: str, dropped: Counter[str] | None = None) -> Pretrained:
    """The weights under one prefix; the others count as dropped."""
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    others = Counter(key.split(".")[0] for key in state if not key.startswith(prefix))
    return Pretrained(layout, weights, others + (dropped or Counter()))


def any_below(prefix: str, state: Weights) -> bool:
    """Whether some key starts with the prefix."""
    return any(key.startswith(prefix) for key in state)
