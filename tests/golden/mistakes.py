"""The mistakes of users whose error messages are golden, with their files and command lines."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from tests.golden.store import BUNDLE_V1, RECIPES

# What a command line may name besides "{tmp}", the folder that `prepare` fills.
_TINY = ("--recipe", "{tmp}/tiny.yaml", "--out", "{tmp}/out")
_ALONE = ("--recipe", "{tmp}/alone.yaml", "--out", "{tmp}/out")
_DEIT = ("--backbone", "deit_s", "--out", "{tmp}/out")
_REPOSITORY = ("--repository", "{tmp}/models")

MISTAKES: dict[str, tuple[str, ...]] = {
    # usage
    "unknown_command": ("frobnicate",),
    "unknown_option": ("parity", "{tmp}/bundle", "--frobnicate"),
    "missing_argument": ("inspect",),
    "missing_out": ("build", "--backbone", "deit_s"),
    "samples_not_a_number": ("build", "--samples", "many", *_TINY),
    "samples_zero": ("build", "--samples", "0", *_TINY),
    "seed_negative": ("build", "--seed", "-1", *_TINY),
    "threads_zero": ("parity", "{tmp}/bundle", "--threads", "0"),
    "unknown_task": ("build", "--task", "detection", *_DEIT),
    # recipes
    "no_model": ("build", "--out", "{tmp}/out"),
    "unknown_backbone": ("build", "--backbone", "deit-s", "--out", "{tmp}/out"),
    "backbone_and_recipe": ("build", "--backbone", "deit_s", *_TINY),
    "other_task": ("build", "--task", "segmentation", *_TINY),
    "recipe_absent": ("build", "--recipe", "{tmp}/none.yaml", "--out", "{tmp}/out"),
    "recipe_unknown_field": ("build", "--recipe", "{tmp}/unknown_field.yaml", "--out", "{tmp}/out"),
    "recipe_missing_field": ("build", "--recipe", "{tmp}/missing_field.yaml", "--out", "{tmp}/out"),
    "recipe_wrong_type": ("build", "--recipe", "{tmp}/wrong_type.yaml", "--out", "{tmp}/out"),
    "recipe_no_yaml": ("build", "--recipe", "{tmp}/no_yaml.yaml", "--out", "{tmp}/out"),
    "recipe_a_list": ("build", "--recipe", "{tmp}/list.yaml", "--out", "{tmp}/out"),
    "recipe_even_kernel": ("build", "--recipe", "{tmp}/even_kernel.yaml", "--out", "{tmp}/out"),
    "recipe_place": ("build", "--recipe", "{tmp}/place.yaml", "--out", "{tmp}/out"),
    "recipe_head_without_task": ("build", "--recipe", "{tmp}/head.yaml", "--out", "{tmp}/out"),
    "recipe_places_without_canonicalizer": ("build", "--recipe", "{tmp}/warps.yaml", "--out", "{tmp}/out"),
    "import_no_entry": ("recipe", "import", "{tmp}/adapter_config.yaml"),
    "import_unknown_entry": ("recipe", "import", "{tmp}/adapter_config.yaml", "--entry", "missing"),
    "import_unknown_model": ("recipe", "import", "{tmp}/adapter_config.yaml", "--entry", "unknown_model"),
    "import_out_exists": (
        *("recipe", "import", "{tmp}/adapter_config.yaml", "--entry", "small_deit"),
        *("--out", "{tmp}/tiny.yaml"),
    ),
    # forms, engines and their options
    "unknown_solver": ("build", "--solver", "newton", *_TINY),
    "unknown_precision": ("build", "--precision", "fp8", *_TINY),
    "unknown_solver_precision": ("build", "--solver-precision", "bf16", *_TINY),
    "solver_without_canonicalizer": ("build", "--solver", "plugin", *_ALONE),
    "solver_precision_without_canonicalizer": ("build", "--solver-precision", "fp16", *_ALONE),
    "phi_without_canonicalizer": ("build", "--expose-phi", *_ALONE),
    "unknown_engine": ("build", "--engine", "onnxrumtime", *_TINY),
    "none_and_another_engine": ("build", "--engine", "none", "--engine", "torch", *_TINY),
    "batch_of_one_number": ("build", "--batch", "8", *_TINY),
    "batch_descending": ("build", "--batch", "4,2,1", *_TINY),
    "batch_of_zero": ("build", "--batch", "0,1,1", *_TINY),
    "capability_no_number": ("build", "--compute-capability", "ampere", *_TINY),
    "options_without_engine": ("build", "--engine", "onnxruntime", "--workspace", "64", *_TINY),
    "timing_cache_without_engine": ("build", "--engine", "none", "--timing-cache", "{tmp}/timings", *_TINY),
    "cpu_fallback_without_engine": ("build", "--engine", "onnxruntime", "--cpu-fallback", *_TINY),
    "tap_beyond_the_model": ("build", "--tap", "5", *_ALONE),
    "tap_negative": ("build", "--tap", "-1", *_ALONE),
    # weights and images
    "checkpoint_absent": ("build", "--checkpoint", "{tmp}/none.safetensors", *_TINY),
    "checkpoint_of_another_model": ("build", "--checkpoint", "{tmp}/other.safetensors", *_TINY),
    "checkpoint_damaged": ("build", "--checkpoint", "{tmp}/damaged.safetensors", *_TINY),
    "checkpoint_runs_code": ("build", "--checkpoint", "{tmp}/evil.pth", *_TINY),
    "strict_weights": ("build", "--strict-weights", *_TINY),
    "images_absent": ("build", "--images", "{tmp}/none", *_TINY),
    "images_empty": ("build", "--images", "{tmp}/empty", *_TINY),
    "images_damaged": ("build", "--images", "{tmp}/broken", *_TINY),
    # targets
    "out_is_a_bundle": ("build", "--recipe", "{tmp}/tiny.yaml", "--out", "{tmp}/bundle"),
    "out_is_no_bundle": ("build", "--recipe", "{tmp}/tiny.yaml", "--out", "{tmp}/broken", "--force"),
    "out_is_an_empty_folder": ("build", "--recipe", "{tmp}/tiny.yaml", "--out", "{tmp}/empty"),
    "out_below_a_file": ("build", "--recipe", "{tmp}/tiny.yaml", "--out", "{tmp}/tiny.yaml/out"),
    # bundles
    "no_bundle": ("inspect", "{tmp}/empty"),
    "bundle_absent": ("parity", "{tmp}/nowhere"),
    "bundle_altered": ("parity", "{tmp}/altered"),
    "bundle_cut_short": ("inspect", "{tmp}/cut_short"),
    "bundle_file_missing": ("inspect", "{tmp}/file_missing"),
    "bundle_of_another_schema": ("inspect", "{tmp}/another_schema"),
    "bundle_manifest_no_json": ("inspect", "{tmp}/no_json"),
    "bundle_manifest_unknown_field": ("inspect", "{tmp}/unknown_manifest_field"),
    "bundle_other_recipe": ("inspect", "{tmp}/other_recipe"),
    "bundle_lists_too_little": ("inspect", "{tmp}/lists_too_little"),
    # parity, bench, triton
    "parity_engine_none": ("parity", "{tmp}/bundle", "--engine", "none"),
    "parity_unknown_engine": ("parity", "{tmp}/bundle", "--engine", "cuda"),
    "parity_cpu_fallback": ("parity", "{tmp}/bundle", "--engine", "onnxruntime", "--cpu-fallback"),
    "parity_engine_not_held": ("parity", "{tmp}/bundle", "--engine", "tensorrt"),
    "parity_html_exists": ("parity", "{tmp}/bundle", "--html", "{tmp}/tiny.yaml"),
    "parity_html_in_the_bundle": ("parity", "{tmp}/bundle", "--html", "{tmp}/bundle/page.html"),
    "parity_html_without_folder": ("parity", "{tmp}/bundle", "--html", "{tmp}/none/page.html"),
    "bench_unknown_baseline": ("bench", "{tmp}/bundle", "--baseline", "quick"),
    "bench_unknown_engine": ("bench", "{tmp}/bundle", "--engine", "onnxrumtime"),
    "bench_batch_no_number": ("bench", "{tmp}/bundle", "--batch", "many"),
    "bench_batch_of_zero": ("bench", "{tmp}/bundle", "--batch", "0"),
    "bench_plot_suffix": ("bench", "{tmp}/bundle", "--plot", "{tmp}/picture.txt"),
    "triton_without_repository": ("triton", "{tmp}/bundle"),
    "triton_unknown_backend": ("triton", "{tmp}/bundle", "--backend", "openvino", *_REPOSITORY),
    "triton_no_plan": ("triton", "{tmp}/bundle", "--backend", "tensorrt", *_REPOSITORY),
    "triton_other_ensemble": ("triton", "{tmp}/bundle", "--ensemble", "segment", *_REPOSITORY),
    "triton_min_server": ("triton", "{tmp}/bundle", "--min-server", "new", *_REPOSITORY),
    "triton_labels_too_few": ("triton", "{tmp}/bundle", "--labels", "{tmp}/tiny.yaml", *_REPOSITORY),
    "triton_bad_name": ("triton", "{tmp}/bundle", "--name", "a b", *_REPOSITORY),
    "triton_repository_is_a_file": ("triton", "{tmp}/bundle", "--repository", "{tmp}/tiny.yaml"),
    "triton_check_no_server": ("triton", "check", "127.0.0.1:9", "--model", "tiny"),
}


def prepare(folder: Path) -> None:
    """Fill the folder with the files that the command lines name."""
    for path in RECIPES.iterdir():
        shutil.copyfile(path, folder / path.name)
    _write_recipes(folder)
    _write_weights_and_images(folder)
    _write_bundles(folder)


def _write_recipes(folder: Path) -> None:
    tiny, alone = ((folder / f"{name}.yaml").read_text() for name in ("tiny", "alone"))
    variants = {
        "unknown_field": f"{tiny}colour: blue\n",
        "missing_field": tiny.replace("name: tiny\n", ""),
        "wrong_type": tiny.replace("num_classes: 10", "num_classes: ten"),
        "no_yaml": "name: [tiny\n",
        "list": "- tiny\n",
        "even_kernel": tiny.replace("kernel_sizes: [3, 3]", "kernel_sizes: [4, 3]"),
        "place": tiny.replace("[-1, 0, 1]", "[-2]"),
        "head": f"{tiny}head: {{kind: linear}}\n",
        "warps": alone.replace("augment_layer_id: [-100]", "augment_layer_id: [0]", 1),
    }
    for name, text in variants.items():
        assert text not in (tiny, alone), name
        (folder / f"{name}.yaml").write_text(text)


class _Evil:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self._folder),)


def _write_weights_and_images(folder: Path) -> None:
    save_file({"head.weight": np.zeros((3, 2), np.float32)}, folder / "other.safetensors")
    (folder / "damaged.safetensors").write_bytes(b"no weights")
    (folder / "evil.pth").write_bytes(pickle.dumps(_Evil(folder / "executed")))
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    image = folder / "broken" / "a.jpg"
    Image.new("RGB", (300, 300)).save(image)
    image.write_bytes(image.read_bytes()[:700])


def _write_bundles(folder: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(BUNDLE_V1, folder / name))

    def edit(path: Path, **changes: Any) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))

    copy("bundle")
    model = copy("altered") / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    (copy("cut_short") / "model.onnx").write_bytes(b"short")
    (copy("file_missing") / "weights.safetensors").unlink()
    edit(copy("another_schema"), schema_version=99)
    (copy("no_json") / "manifest.json").write_text("{")
    edit(copy("unknown_manifest_field"), surprise=1)
    edit(copy("lists_too_little"), files={})
    other = copy("other_recipe")
    recipe = json.loads((other / "manifest.json").read_text())["recipe"]
    edit(other, recipe={**recipe, "name": "another"})
