"""A configuration and the files of the published program on transformers become a proven bundle, by two commands."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml

from dec_export.bundle.store import Bundle
from dec_export.recipe.model import Recipe
from dec_export.reference.model import create_reference
from dec_export.reference.weights.checkpoint import file_sha256
from tests.helpers.commands import refused, run
from tests.helpers.published import CONFIG_1, beside, formula_state, imported
from tests.helpers.texts import ADAPTER_CONFIG

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 3, "patch_size": 8}
NAME = "39 ada_vit_dem_classification"


def shrink(path: Path) -> Recipe:
    """Make an imported recipe small, in its file; return it."""
    document = yaml.safe_load(path.read_text())
    document["backbone"] |= {"image_size": 32, "num_classes": 5, "timm_args": SMALL}
    document["backbone"]["preparation"]["resize"] = 32
    document["canonicalizer"] |= {"image_size": 32, "channels": [3, 4, 6]}
    path.write_text(yaml.safe_dump(document))
    return Recipe.load(path)


def files_of_a_run(folder: Path, recipe: Recipe) -> Path:
    """Write the files of a run in the layout of transformers, with weights that are formulas; return the backbone."""
    model = create_reference(recipe)
    width, layer = 24, "model.encoder.layer"
    shapes: dict[str, tuple[int, ...]] = {
        "model.embeddings.cls_token": (1, 1, width),
        "model.embeddings.position_embeddings": (1, 17, width),
        "model.embeddings.patch_embeddings.projection.weight": (width, 3, 8, 8),
        "model.embeddings.patch_embeddings.projection.bias": (width,),
        "model.layernorm.weight": (width,),
        "model.layernorm.bias": (width,),
        "model.pooler.dense.weight": (width, width),
        "model.pooler.dense.bias": (width,),
        "classifier.weight": (5, width),
        "classifier.bias": (5,),
    }
    linears = {
        **{f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")},
        "attention.output.dense": (width, width),
        "intermediate.dense": (4 * width, width),
        "output.dense": (width, 4 * width),
    }
    for block in range(3):
        for name, (outputs, inputs) in linears.items():
            shapes |= {f"{layer}.{block}.{name}.weight": (outputs, inputs), f"{layer}.{block}.{name}.bias": (outputs,)}
        for name in ("layernorm_before", "layernorm_after"):
            shapes |= {f"{layer}.{block}.{name}.{kind}": (width,) for kind in ("weight", "bias")}
    path = folder / f"{NAME}.pth"
    torch.save(formula_state(shapes), path)
    canonicalizers = {
        key.removeprefix("DEM."): value.shape for key, value in model.state_dict().items() if "DEM." in key
    }
    torch.save(formula_state(canonicalizers), beside(path, "_surrogate"))
    for axis in "xy":
        torch.save([torch.ones(1, 4, 3, requires_grad=True)] * 2, beside(path, f"_phi_{axis}"))
    return path


@pytest.mark.slow
def test_two_commands_lead_from_the_files_to_a_proven_bundle(tmp_path: Path) -> None:
    config, recipe_file, out = tmp_path / "config 1.yaml", tmp_path / "mine.yaml", tmp_path / "a bundle"
    config.write_text(CONFIG_1)
    done = run(*("recipe", "import", config, "--entry", "ada_vit_dem", "--image-size", 40, "--out", recipe_file))
    assert done.returncode == 0, done.stderr
    assert "resize is not antialiased" in done.stderr
    recipe = shrink(recipe_file)
    path = files_of_a_run(tmp_path, recipe)
    done = run(
        *("build", "--recipe", recipe_file, "--checkpoint", path, "--strict-weights", "--engine", "onnxruntime"),
        *("--samples", 2, "--out", out, "--json"),
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["gate"] == "pass"
    assert answer["weights"]["canonicalizer_sha256"] == file_sha256(beside(path, "_surrogate"))
    bundle = Bundle.load(out)
    assert (bundle.manifest.weights.file, bundle.recipe.image_size) == (path.name, 40)
    assert bundle.manifest.weights.canonicalizer_file == f"{NAME}_surrogate.pth"
    assert bundle.preprocessing.mean == (0.0, 0.0, 0.0)


def test_the_wrong_half_is_refused_by_the_command(tmp_path: Path) -> None:
    recipe_file, out = tmp_path / "mine.yaml", tmp_path / "out"
    recipe_file.write_text(imported(tmp_path, "ada_vit_dem").to_yaml())
    path = files_of_a_run(tmp_path, shrink(recipe_file))
    options = ("--checkpoint", path, "--canonicalizer-checkpoint", beside(path, "_phi_x"), "--engine", "none")
    sentence = refused("build", "--recipe", recipe_file, *options, "--out", out)
    assert f"give the backbone's file '{path.name}'" in sentence
    assert not out.exists()


def test_recipe_import_takes_the_preprocessing_of_a_checkpoint(tmp_path: Path) -> None:
    config, checkpoint = tmp_path / "adapter_config.yaml", tmp_path / "model_best.pth.tar"
    config.write_text(ADAPTER_CONFIG)
    arguments = Namespace(img_size=None, crop_pct=0.8, interpolation="bilinear", mean=[0.5] * 3, std=None)
    torch.save({"state_dict": {"x": torch.ones(1)}, "args": arguments}, checkpoint)
    done = run("recipe", "import", config, "--entry", "base_deit", "--checkpoint", checkpoint, "--json")
    found = json.loads(done.stdout)["recipe"]["input"]
    assert (found["crop_pct"], found["interpolation"], found["mean"]) == (0.8, "bilinear", [0.5] * 3)
    assert (found["std"], found["image_size"]) == (None, None)
