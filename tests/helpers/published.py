"""Configurations and files in the form in which the published programs write them, with weights that are formulas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import Tensor

from dec_export.recipe.model import Recipe
from dec_export.recipe.published.base import ImportOptions
from dec_export.reference.discrete import candidate_phis
from tests.helpers.models import formula_weights

TRANSFORMERS = json.loads(
    (Path(__file__).parents[1] / "reference" / "data" / "published_transformers.json").read_text()
)
# What makes timm's models as small as the models whose numbers are stored.
SMALL_VIT = {"embed_dim": 48, "depth": 4, "num_heads": 3}
_SMALL: dict[str, dict[str, int]] = {"swin_transformer": {"embed_dim": 24}, "resnet": {}}
NOTHING_ADDED = ImportOptions()
# The warps from which a classical canonicalizer chooses, which its files hold beside its weights.
CANDIDATES = ("deform_params_x", "deform_params_y")
_INTEGERS = ("num_batches_tracked", "relative_position_index")

# Both files are written anew here, with the fields and the merging of the published ones.
CONFIG_1 = """
base: &BASE
  model: 'cnn'
  data_set: 'mnist'
  image_size: 70
  n_digits: 3
  num_classes: 1000
  do_adaptation: !!bool False
  do_cannonicalization: !!bool False
  skip_input_augmentation: !!bool True
  deep_equlibrium_mode: !!bool False
  use_pretrained: !!bool True
  unique_params_limit: 8
  warping_strength: 0.25
  deform_resolution: NULL
vit: &VIT
  <<: *BASE
  model: 'vit'
vit_cannonicalization:
  <<: *VIT
  do_cannonicalization: !!bool True
  cannon_num_layers: 2
  cannon_num_channels: [3, 4, 1]
  kernel_sizes: [3, 3, 3]
ada_vit_dem: &ADA
  <<: *VIT
  do_adaptation: !!bool True
  deep_equlibrium_mode: !!bool True
  num_phi_layers: 2
  adapter_coarse_resolution: [4, 4]
  adapter_num_layers: 2
  adapter_channels: [3, 32, 64, 64]
  adapter_filter_size: [3, 3, 3]
  adapter_pool_rate: [2, 2, 1]
  inner_epochs: 5
ada_beit_dem:
  <<: *ADA
  model: 'beit'
  adapter_num_layers: 4
  adapter_channels: [3, 32, 64, 128, 128]
  adapter_filter_size: [3, 3, 3, 3]
  adapter_pool_rate: [2, 2, 2, 1]
ada_deit_dem:
  <<: *ADA
  model: 'deit'
ada_dino_dem:
  <<: *ADA
  model: 'dino'
  num_phi_layers: 3
  adapter_coarse_resolution: [4, 4, 4]
ada_swin_dem:
  <<: *ADA
  model: 'swin_transformer'
ada_res_net_dem:
  <<: *ADA
  model: 'resnet'
"""


def imported(folder: Path, entry: str, options: ImportOptions = NOTHING_ADDED, **fields: object) -> Recipe:
    """Return the recipe of an entry of CONFIG_1 with other fields."""
    return imported_with_notes(folder, entry, options, **fields)[0]


def imported_with_notes(
    folder: Path, entry: str, options: ImportOptions = NOTHING_ADDED, **fields: object
) -> tuple[Recipe, Sequence[str]]:
    """Return the recipe and the notes of an entry of CONFIG_1 with other fields."""
    document = yaml.safe_load(CONFIG_1)
    path = folder / "config_1.yaml"
    path.write_text(yaml.safe_dump({**document, entry: {**document[entry], **fields}}))
    return Recipe.imported(f"{path}#{entry}", options)


def small_recipe(folder: Path, case: str) -> Recipe:
    """Return the recipe of a stored case, imported from its configuration and made as small as the stored model."""
    facts = TRANSFORMERS["cases"][case]
    path = folder / "config_1.yaml"
    path.write_text(yaml.safe_dump({facts["entry"]: facts["params"]}))
    recipe, _ = Recipe.imported(f"{path}#{facts['entry']}", NOTHING_ADDED)
    small = _SMALL.get(facts["params"]["model"], SMALL_VIT)
    backbone = recipe.backbone.model_copy(update={"timm_args": {**recipe.backbone.timm_args, **small}})
    return recipe.model_copy(update={"backbone": backbone})


def create_small(name: str, **options: Any) -> torch.nn.Module:
    """Create timm's model, a ResNet with an eighth of its channels."""
    narrow = {"channels": (8, 16, 24, 32)} if name.startswith("resnet") else {}
    model: torch.nn.Module = _create_model(name, **options, **narrow)
    return model


_create_model = timm.create_model


def formula_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return a state dict of formulas in float32; variances are around one, and whole numbers zero."""
    floats = {key: tuple(shape) for key, shape in shapes.items() if not key.endswith((*_INTEGERS, *CANDIDATES))}
    state = {
        key: (value + 1 if key.endswith("running_var") else value).float()
        for key, value in formula_weights(floats).items()
    }
    others = {key: shape for key, shape in shapes.items() if key not in floats}
    whole = {key: torch.zeros(tuple(shape), dtype=torch.int64) for key, shape in others.items()}
    return {key: (state | whole)[key] for key in shapes}


def write_files(folder: Path, case: str) -> Path:
    """Write the files that the published program writes for a stored case; return that of the backbone."""
    facts = TRANSFORMERS["cases"][case]
    path: Path = folder / facts["file"]
    state = formula_state(TRANSFORMERS["backbones"][facts["backbone"]] | facts["head"])
    discrete = small_recipe(folder, case).discrete
    if discrete is not None:
        state |= dict(zip(CANDIDATES, candidate_phis(discrete), strict=True))
    torch.save(state, path)
    sizes = facts["params"].get("adapter_coarse_resolution") if facts["canonicalizers"] else None
    if facts["canonicalizers"]:
        torch.save(formula_state(facts["canonicalizers"]), beside(path, "_surrogate"))
    for axis in "xy":
        starts = None if sizes is None else [torch.ones(1, size, size - 1, requires_grad=True) for size in sizes]
        torch.save(starts, beside(path, f"_phi_{axis}"))
    return path


def beside(path: Path, ending: str) -> Path:
    """Return the path of the file that the published program writes beside the backbone's file."""
    return path.with_name(f"{path.stem}{ending}.pth")
