"""What the translations of the published programs share: their types, and the fields that both programs have."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dec_export.errors import RecipeError
from dec_export.recipe.reading import Document

NEVER = [-100]
# More layers or pixels than any model has, and few enough for a list of them.
_MAX_COUNT = 4096
ANTIALIAS_NOTE = (
    "The canonicalizers' resize is not antialiased (canonicalizer.antialias: false), as in the published environment, "
    "torchvision 0.16.2; set it to true if the model was trained with torchvision 0.17 or later."
)


@dataclass(frozen=True)
class ImportOptions:
    """What a user adds to a published configuration.

    backbone: the name of the shipped recipe whose timm model was trained; None means the program's own model.
    image_size: the height and width of the data's images in pixels; None means those of the configuration.
    image_processor: a `preprocessor_config.json` that replaces the published model's; None means the published one.
    """

    backbone: str | None = None
    image_size: int | None = None
    image_processor: Path | None = None


@dataclass(frozen=True)
class Translation:
    """The document of a recipe, not yet checked, and sentences about what the configuration does not show."""

    document: Document
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One configuration in a published file: its name, the file in messages, and its fields."""

    name: str
    file: str
    config: Document

    def value(self, field: str, default: object = None) -> object:
        """Return a field; the word "None" means null, as in the published reader of configurations."""
        found = self.config.get(field, default)
        return None if found == "None" else found

    def flag(self, field: str, default: bool = False) -> bool:
        """Return a field that is true or false; raise RecipeError for anything else."""
        found = self.value(field, default)
        if not isinstance(found, bool):
            raise RecipeError(
                f"'{self.name}' in '{self.file}': {field} must be true or false, found {reprlib.repr(found)}."
            )
        return found

    def count(self, field: str) -> int:
        """Return a field that is a whole number from 1 to 4096; raise RecipeError for anything else."""
        found = self.value(field)
        if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= _MAX_COUNT:
            raise RecipeError(
                f"'{self.name}' in '{self.file}': {field} must be a whole number from 1 to {_MAX_COUNT}, "
                f"found {reprlib.repr(found)}."
            )
        return found

    def first(self, field: str, count: int) -> object:
        """Return the first values of a list, as the published programs read them; anything else stays as it is."""
        found = self.value(field)
        return found[:count] if isinstance(found, list) else found


@dataclass(frozen=True)
class Program:
    """A published program.

    model_field: the field of its configurations that names the model.
    marks: fields of which each of its configurations has at least one.
    translate: the translation of a configuration.
    """

    model_field: str
    marks: frozenset[str]
    translate: Callable[[Entry, ImportOptions], Translation]


def check_not_optim(entry: Entry) -> None:
    """Raise RecipeError for a configuration of Optim, which canonicalizes by gradient descent."""
    if not entry.flag("deep_equlibrium_mode", True):
        raise RecipeError(
            f"'{entry.name}' in '{entry.file}' has deep_equlibrium_mode false: Optim needs gradients at inference, "
            "which no exported graph has, so it is a baseline of `dec-export bench` and no model to deploy."
        )


def deep_equilibrium(entry: Entry) -> Document:
    """Return the section `canonicalizer` of the deep equilibrium canonicalizers; surplus values of lists are cut."""
    check_not_optim(entry)
    layers, blocks = entry.count("num_phi_layers"), entry.count("adapter_num_layers")
    return {
        "coarse_resolution": entry.first("adapter_coarse_resolution", layers),
        "channels": entry.first("adapter_channels", blocks + 1),
        "kernel_sizes": entry.first("adapter_filter_size", blocks),
        "pool_rates": entry.first("adapter_pool_rate", blocks),
        "antialias": False,
        "scale_image": entry.flag("dem_image_scale", True),
        "max_iter": entry.value("inner_epochs"),
    }


def discrete(entry: Entry, prefix: str, kernels: str, values: object) -> Document:
    """Return the section `canonicalizer` of the classical canonicalizer.

    prefix: how the program spells the start of its fields. kernels: its field of kernel sizes. values: the values of
    which the warps are made.
    """
    layers = entry.count(f"{prefix}_num_layers")
    return {
        "kind": "discrete",
        "values": values,
        "limit": entry.value("unique_params_limit"),
        "channels": entry.first(f"{prefix}_num_channels", layers + 1),
        "kernel_sizes": entry.first(kernels, layers),
    }
