"""Checkpoints of every layout are read, and files that must be refused give an error."""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import zipfile
from importlib import resources
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dec_export.errors import CheckpointError
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel, create_reference
from dec_export.reference.weights.checkpoint import load_reference, read_weights
from dec_export.reference.weights.fitting import load_weights, published_state_dict
from tests.conftest import photographs


def saved(model: DecModel, path: Path, wrap: object = None) -> Path:
    state = published_state_dict(model)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(wrap(state) if callable(wrap) else state, path)
    return path


LAYOUTS = {
    "safetensors": (".safetensors", None),
    "state dict": (".pth", None),
    "timm training": (
        ".pth.tar",
        lambda s: {"state_dict": s, "epoch": 3, "arch": "x", "args": argparse.Namespace(lr=0.1, opt="adamw")},
    ),
    "data parallel": (".pt", lambda s: {f"module.{k}": v for k, v in s.items()}),
    "compiled": (".pt", lambda s: {"model": {f"_orig_mod.{k}": v for k, v in s.items()}}),
    "old buffers": (".pt", lambda s: {**s, "blocks.0.attn.relative_position_index": torch.zeros(3)}),
    "averaged": (".pt", lambda s: {"state_dict": {k: v * 0 for k, v in s.items()}, "state_dict_ema": s}),
    "unknown suffix": (".ckpt", None),
    "safetensors with another name": (".pth", "safetensors"),
    "legacy pickle": (".pt", None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_back_the_model(
    layout: str, small_model: DecModel, small_recipe: Recipe, tmp_path: Path
) -> None:
    suffix, wrap = LAYOUTS[layout]
    path = tmp_path / f"weights{suffix}"
    if layout == "legacy pickle":
        torch.save(published_state_dict(small_model), path, _use_new_zipfile_serialization=False)
    elif wrap == "safetensors":
        save_file(published_state_dict(small_model), path)
    else:
        saved(small_model, path, wrap)
    loaded, source = load_reference(small_recipe, path)
    image = torch.from_numpy(photographs(160, 1))
    with torch.inference_mode():
        assert torch.equal(loaded(image).logits, small_model.eval()(image).logits)
    assert (source.backbone, source.canonicalizer, source.file) == ("checkpoint", "checkpoint", path.name)
    assert len(source.sha256 or "") == 64


def test_half_precision_weights_are_widened(small_model: DecModel, small_recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({k: v.bfloat16() for k, v in published_state_dict(small_model).items()}, path)
    loaded, _ = load_reference(small_recipe, path)
    weight = "DEM.module_list.0.0.conv1.weight"
    expected = small_model.state_dict()[weight].bfloat16().float()
    assert torch.equal(loaded.state_dict()[weight], expected)


def test_a_model_without_canonicalizers_gives_back_its_weights(tmp_path: Path) -> None:
    recipe = Recipe.named("digits_ser")
    model = create_reference(recipe, seed=1)
    loaded, _ = load_reference(recipe, saved(model, tmp_path / "ser.safetensors"), seed=2)
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key


class _Malicious:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.flag),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("plain", [True, False], ids=["plain pickle", "torch archive"])
def test_a_pickle_with_code_is_refused_and_not_executed(protocol: int, plain: bool, tmp_path: Path) -> None:
    flag, path = tmp_path / "executed", tmp_path / "bad.pth"
    if plain:
        path.write_bytes(pickle.dumps({"weight": _Malicious(flag)}, protocol=protocol))
    else:
        torch.save({"weight": _Malicious(flag)}, path, pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=r"refused|not a whole"):
        read_weights(path)
    assert not flag.exists()


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match=r"save model\.state_dict"):
        read_weights(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_refused(suffix: str, small_model: DecModel, tmp_path: Path) -> None:
    path = saved(small_model, tmp_path / f"whole{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="whole"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 64], ids=["empty", "text", "huge header"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_another_kind_of_file_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_weights(path)


def test_an_archive_that_grows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(CheckpointError, match="unpacks to"):
        read_weights(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint file"):
        read_weights(tmp_path / "none.pth")


def test_no_state_dict_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"epoch": 3, "net": {"a": torch.ones(1)}}, path)
    with pytest.raises(CheckpointError, match=r"holds no state dict: .* found epoch, net"):
        read_weights(path)


def test_another_architecture_names_keys_and_shapes(small_model: DecModel, small_recipe: Recipe) -> None:
    weights = published_state_dict(small_model)
    weights["head.weight"] = torch.zeros(3, 64)
    with pytest.raises(CheckpointError, match=r"'head.weight' is 3x64, expected 10x64"):
        load_weights(create_reference(small_recipe), weights, Path("x"))
    del weights["head.weight"]
    weights["surprise"] = torch.zeros(2)
    with pytest.raises(CheckpointError, match=r"'head.weight' 10x64 is missing; 'surprise' 2 is not expected"):
        load_weights(create_reference(small_recipe), weights, Path("x"))


def test_nothing_is_copied_when_anything_differs(small_model: DecModel, small_recipe: Recipe) -> None:
    target = create_reference(small_recipe)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    weights = published_state_dict(small_model)
    weights["head.weight"] = torch.zeros(3, 64)
    with pytest.raises(CheckpointError):
        load_weights(target, weights, Path("x"))
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


def test_a_tensor_that_only_claims_to_be_huge_is_refused(small_model: DecModel, small_recipe: Recipe) -> None:
    weights = published_state_dict(small_model)
    weights["head.bias"] = torch.zeros(1).expand(1 << 50)
    with pytest.raises(CheckpointError, match="expected 10"):
        load_weights(create_reference(small_recipe), weights, Path("x"))


def test_a_plain_backbone_is_told_from_a_dec_model(small_model: DecModel, small_recipe: Recipe) -> None:
    backbone = {k: v for k, v in published_state_dict(small_model).items() if not k.startswith("DEM.")}
    with pytest.raises(CheckpointError, match="only a backbone"):
        load_weights(create_reference(small_recipe), backbone, Path("x"))


def test_nan_weights_are_refused(small_model: DecModel, small_recipe: Recipe) -> None:
    weights = {k: v.clone() for k, v in published_state_dict(small_model).items()}
    weights["head.bias"][0] = float("nan")
    with pytest.raises(CheckpointError, match=r"holds NaN, or infinity .* in 'head\.bias'"):
        load_weights(create_reference(small_recipe), weights, Path("x"))


ODD_TENSORS = {
    "complex": lambda t: t.to(torch.complex64),
    "whole numbers": lambda t: torch.ones_like(t, dtype=torch.int32),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_that_are_no_plain_numbers_are_refused(kind: str, small_model: DecModel, small_recipe: Recipe) -> None:
    weights = published_state_dict(small_model)
    weights["head.weight"] = ODD_TENSORS[kind](weights["head.weight"].clone())
    with pytest.raises(CheckpointError, match=r"'head\.weight' as .* expected plain numbers"):
        load_weights(create_reference(small_recipe), weights, Path("x"))


def test_numbers_too_large_for_float32_are_refused(small_model: DecModel, small_recipe: Recipe) -> None:
    weights = published_state_dict(small_model)
    weights["head.bias"] = weights["head.bias"].double() + 1e300
    with pytest.raises(CheckpointError, match=r"infinity in torch\.float32"):
        load_weights(create_reference(small_recipe), weights, Path("x"))


@given(kind=st.sampled_from(["zip", "legacy", "safetensors"]), data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_never_give_a_traceback(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(3)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        read_weights(path)


def test_random_weights_say_so_and_strict_refuses_them(small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, source = load_reference(small_recipe, seed=5)
    assert (source.backbone, source.canonicalizer, source.seed) == ("random", "random", 5)
    assert "random" in source.detail
    with pytest.raises(CheckpointError, match="strict-weights"):
        load_reference(small_recipe, strict=True)


def test_a_model_of_other_sizes_has_no_pretrained_weights(
    small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dec_export.reference.weights import hub

    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    update = {"timm": "test_vit.r160_in1k", "num_classes": 1000, "timm_args": {"depth": 2}}
    backbone = small_recipe.backbone.model_copy(update=update)
    model, source = load_reference(small_recipe.model_copy(update={"backbone": backbone}))
    assert len(model.backbone.blocks) == 2
    assert source.backbone == "random"
    assert "changes the sizes" in source.detail


def test_pretrained_weights_reach_the_backbone_alone(small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the hub, timm returns a model with other weights when it is asked for pretrained weights."""
    import timm

    from dec_export.reference.weights import hub

    recipe = small_recipe.model_copy(
        update={
            "backbone": small_recipe.backbone.model_copy(update={"timm": "test_vit.r160_in1k", "num_classes": 1000})
        }
    )
    torch.manual_seed(123)
    pretrained = timm.create_model("test_vit")
    create = timm.create_model
    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    monkeypatch.setattr(
        timm, "create_model", lambda *a, pretrained=False, **k: stand_in if pretrained else create(*a, **k)
    )
    stand_in = pretrained
    model, source = load_reference(recipe)
    assert (source.backbone, source.canonicalizer) == ("pretrained", "random")
    assert torch.equal(model.backbone.head.weight, pretrained.head.weight)
    seeded = create_reference(recipe)
    assert torch.equal(model.DEM.module_list[0][2].weight, seeded.DEM.module_list[0][2].weight)


def test_a_shipped_recipe_brings_its_trained_weights() -> None:
    recipe = Recipe.named("digits")
    model, source = load_reference(recipe, strict=True)
    assert (source.backbone, source.canonicalizer, source.file) == ("checkpoint", "checkpoint", "digits.safetensors")
    assert "ships with dec-export" in source.detail
    trained = load_file(Path(str(resources.files("dec_export_models") / "digits.safetensors")))
    assert torch.equal(published_state_dict(model)["head.weight"], trained["head.weight"])
    # Another recipe under the same name is another model.
    other = recipe.model_copy(update={"augment_layer_id": (-1, 0)})
    assert load_reference(other)[1].canonicalizer == "random"
