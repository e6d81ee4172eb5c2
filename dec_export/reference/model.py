"""The reference model: a timm backbone with its canonicalizers, in float64, in float32, or partly in 16 bits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import timm
import torch
from timm.data.config import resolve_data_config
from timm.models import PretrainedCfg
from torch import Tensor, nn

from dec_export.data.images import Preprocessing
from dec_export.errors import RecipeError
from dec_export.formats import Format
from dec_export.recipe.model import Recipe
from dec_export.reference.backbones.adjusted import adjust
from dec_export.reference.backbones.insertion import feature_maps, run_with_warps
from dec_export.reference.backbones.late_class_token import insert_class_token
from dec_export.reference.backbones.operations import Operations, reference_operations
from dec_export.reference.backbones.stages import check_family, check_places, insertion_of
from dec_export.reference.finite import finite_samples, guarded, nan_unless
from dec_export.reference.heads import create_head
from dec_export.reference.kinds import create_canonicalizer
from dec_export.reference.precision import cast_backbone, cast_head, check_precision
from dec_export.reference.warp import Phi


class DecOutput(NamedTuple):
    """The output of a model.

    logits: (B, classes), or (B, classes, H, W) for segmentation.
    phis: the solved phi of every canonicalized layer.
    """

    logits: Tensor
    phis: list[Phi]


class DecModel(nn.Module):
    """The model that an export must reproduce. Its input is images (B, 3, H, W), normalised as the backbone expects."""

    def __init__(self, recipe: Recipe, backbone: nn.Module) -> None:
        super().__init__()
        self.recipe = recipe
        self.backbone = backbone
        self.DEM = create_canonicalizer(recipe)
        self.decoder = None if recipe.head is None else _create_decoder(recipe, backbone)

    def forward(self, image: Tensor) -> DecOutput:
        return self.answer(image, self.DEM(image))

    def answer(self, image: Tensor, phis: list[Phi]) -> DecOutput:
        """Return the output for solved phis; it is NaN for samples that `reference.finite` finds not to be finite."""
        finite = finite_samples(image, phis)
        phis = guarded(finite, phis)
        logits = predict(self.recipe, self.backbone, self.decoder, image, phis)
        return DecOutput(nan_unless(finite, logits), phis)

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype of images, logits and phi: float64 for a model in float64, else float32."""
        return torch.float64 if next(self.parameters()).dtype == torch.float64 else torch.float32


def predict(
    recipe: Recipe,
    backbone: nn.Module,
    decoder: nn.Module | None,
    image: Tensor,
    phis: Sequence[Phi],
    operations: Operations | None = None,
) -> Tensor:
    """Return the logits of images (B, 3, H, W) in their dtype, from the backbone or from the decoder on its features.

    Without phis nothing is warped. `operations` are those of the reference unless others are given. A discrete
    canonicalizer warps around the whole model: its phi warps the image before the backbone prepares it, and unwarps the
    logits of a task that must unwarp.
    """
    if recipe.discrete is not None and phis:
        around = operations or reference_operations(recipe)
        logits = predict(recipe, backbone, decoder, around.warp(phis[0], image, None), [], operations)
        return around.unwarp(phis[0], logits, None) if recipe.unwarps_output else logits
    if decoder is None:
        return run_with_warps(recipe, backbone, image, phis, operations)
    features = feature_maps(recipe, backbone, image, phis, operations)
    decoded: Tensor = decoder(features, tuple(image.shape[-2:]))
    return decoded.to(image.dtype)


def _create_decoder(recipe: Recipe, backbone: nn.Module) -> nn.Module:
    """Return the recipe's head; one pass of the backbone shows the numbers of channels of its features."""
    assert recipe.head is not None
    size = recipe.image_size
    training = backbone.training
    with torch.no_grad():
        features = feature_maps(recipe, backbone.eval(), torch.zeros(1, 3, size, size), [])
    backbone.train(training)
    return create_head(recipe.head, [values.shape[1] for values in features], recipe.backbone.num_classes)


def in_precision(model: DecModel, precision: Format, solver_precision: Format = Format.FP32) -> DecModel:
    """Return a copy of a float32 model whose backbone and canonicalizer networks compute in these formats.

    An engine that computes in these formats is compared with this copy. Raises DecExportError for a format that the
    backbone, or the canonicalizers' networks, cannot have.
    """
    precision, solver_precision = check_precision(precision, solver_precision)
    copied = copy.deepcopy(model)
    cast_backbone(copied.backbone, precision)
    if copied.decoder is not None:
        cast_head(copied.decoder, precision)
    copied.DEM.to(solver_precision.torch)
    return copied


def create_reference(recipe: Recipe, seed: int = 0) -> DecModel:
    """Return the recipe's model with seeded random weights, in float32 and evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DecModel(recipe, _create_backbone(recipe)).eval()


def _create_backbone(recipe: Recipe) -> nn.Module:
    spec = recipe.backbone
    cfg = _pretrained_cfg(recipe)
    sized = cfg.input_size[-1] != spec.image_size and insertion_of(spec).layout != "channels_first"
    # Each model of timm has arguments of its own, which have no common type.
    options: dict[str, Any] = {"img_size": spec.image_size} if sized else {}
    options.update(**spec.timm_args)
    try:
        classes = spec.num_classes if recipe.head is None else 0
        model: nn.Module = timm.create_model(spec.timm, num_classes=classes, **options)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise RecipeError(
            f"recipe '{recipe.name}': timm cannot create '{spec.timm}' for {spec.image_size} pixels: {error}"
        ) from error
    check_family(spec, model)
    _check_patches(recipe, model)
    adjust(spec, model)
    if spec.cls_insert_layer is not None:
        model = insert_class_token(spec, model)
    check_places(recipe, model)
    return model


def _check_patches(recipe: Recipe, model: nn.Module) -> None:
    """Raise RecipeError unless the image is a whole number of the model's patches; others take images of any size."""
    embedding = getattr(model, "patch_embed", None)
    patch = getattr(embedding, "patch_size", (1,))[0]
    if recipe.backbone.image_size % patch:
        raise RecipeError(
            f"recipe '{recipe.name}': image_size must be a multiple of {recipe.backbone.timm}'s patches of {patch} "
            f"pixels, found {recipe.backbone.image_size}."
        )


def preprocessing_of(recipe: Recipe) -> Preprocessing:
    """Return how image files become the model's input: as the recipe says, and by timm where it says nothing."""
    cfg, own = _pretrained_cfg(recipe), recipe.input
    data = resolve_data_config(pretrained_cfg=cfg.to_dict())
    if own.squash is None and data["crop_mode"] not in ("center", "squash"):
        raise RecipeError(
            f"recipe '{recipe.name}': '{recipe.backbone.timm}' prepares images by crop mode '{data['crop_mode']}', "
            "expected center or squash: set input.squash, or choose another model."
        )
    return Preprocessing(
        recipe.image_size,
        own.crop_pct or data["crop_pct"],
        own.interpolation or data["interpolation"],
        own.mean or tuple(data["mean"]),
        own.std or tuple(data["std"]),
        squash=data["crop_mode"] == "squash" if own.squash is None else own.squash,
    )


def _pretrained_cfg(recipe: Recipe) -> PretrainedCfg:
    """Return timm's configuration of the recipe's model; raise RecipeError when timm does not know the model."""
    name = recipe.backbone.timm
    try:
        cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # timm knows the architecture but not the tag
        cfg = None
    if cfg is None:
        raise RecipeError(f"recipe '{recipe.name}': timm {timm.__version__} has no model '{name}'.")
    return cfg
