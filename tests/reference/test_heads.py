"""The heads are compared with numbers of the published implementation, and their inputs with the backbone's features.

`data/published_heads.json` holds what the public heads of arXiv 2508.14187 compute in float64, for weights and features
that are formulas.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dec_export.errors import CheckpointError, RecipeError
from dec_export.recipe.model import BackboneRecipe, CanonicalizerRecipe, HeadRecipe, Recipe
from dec_export.reference.backbones.insertion import stage_outputs
from dec_export.reference.heads import create_head
from dec_export.reference.model import create_reference, predict
from dec_export.reference.trace import trace
from dec_export.reference.warp import Phi, unwarp, warp
from dec_export.reference.weights.fitting import load_weights, published_state_dict
from tests.conftest import SMALL_CANONICALIZER
from tests.helpers.models import DPT, LINEAR, formula_weights, image, segmenter

PUBLISHED = json.loads((Path(__file__).parent / "data" / "published_heads.json").read_text())


def formula_head(head: nn.Module) -> nn.Module:
    """Return the head in float64 with weights that are formulas; variances are positive."""
    state = head.double().eval().state_dict()
    values = formula_weights({name: tuple(value.shape) for name, value in state.items() if value.is_floating_point()})
    for name in values:
        if name.endswith("running_var"):
            values[name] = 1 + values[name]
    head.load_state_dict({**state, **values})
    return head


def formula_features(shapes: list[list[int]]) -> list[Tensor]:
    return [
        torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * (0.3 + 0.1 * i)).reshape(shape)
        for i, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize("case", PUBLISHED["cases"])
def test_a_head_gives_the_published_numbers(case: str) -> None:
    settings = PUBLISHED["cases"][case]
    recipe = HeadRecipe.model_validate({**settings["head"], "taps": tuple(settings["head"]["taps"])})
    channels = [shape[1] for shape in settings["shapes"]]
    head = formula_head(create_head(recipe, channels, settings["classes"]))
    with torch.inference_mode():
        found = head(formula_features(settings["shapes"]), tuple(settings["size"])).numpy().ravel()
    truth = np.array(settings["output"])
    assert np.linalg.norm(found - truth) <= 1e-12 * np.linalg.norm(truth)


@pytest.mark.parametrize("head", [LINEAR, DPT], ids=["linear", "dpt"])
def test_logits_lie_over_the_image(head: HeadRecipe) -> None:
    with torch.inference_mode():
        logits, phis = segmenter(head)(image())
    assert logits.shape == (2, 5, 160, 160)
    assert len(phis) == 2


def test_every_warped_block_is_unwarped_after_it() -> None:
    model = segmenter(LINEAR, places=(1,))
    blocks = model.backbone.blocks
    given: dict[str, Tensor] = {}
    blocks[1].register_forward_pre_hook(lambda _, args: given.update(before=args[0]))
    blocks[0].register_forward_hook(lambda _, __, output: given.update(entering=output))
    with torch.inference_mode(), stage_outputs(model.recipe.backbone, model.backbone, [1]) as leaving:
        phi = model(image()).phis[0]
        height, width = model.backbone.patch_embed.grid_size

        def on_map(tokens: Tensor, transform: Any) -> Tensor:
            map_ = tokens[:, 1:].transpose(1, 2).unflatten(2, (height, width))
            return torch.cat([tokens[:, :1], transform(phi, map_).flatten(2).transpose(1, 2)], dim=1)

        torch.testing.assert_close(given["before"], on_map(given["entering"], warp))
        torch.testing.assert_close(leaving[1], on_map(blocks[1](given["before"]), unwarp))


def test_constant_phis_leave_a_model_without_canonicalizers() -> None:
    model = segmenter(DPT)
    x = image()
    ones = [Phi.ones(2, r, x) for r in model.recipe.canonicalizer.coarse_resolution]
    with torch.inference_mode():
        plain = predict(model.recipe, model.backbone, model.decoder, x, [])
        torch.testing.assert_close(predict(model.recipe, model.backbone, model.decoder, x, ones), plain)


def test_taps_read_inputs_warped_or_outputs_unwarped() -> None:
    outputs, inputs = (segmenter(DPT.model_copy(update={"tapped": side})) for side in ("output", "input"))
    inputs.load_state_dict(outputs.state_dict())
    seen: dict[str, list[Tensor]] = {}
    for name, model in (("output", outputs), ("input", inputs)):
        model.decoder.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        with torch.inference_mode():
            traced = trace(model, image(1))
    # What leaves block 1 enters block 2 as it is, since block 2 is not warped.
    tokens = traced.features[1][:, 1:].transpose(1, 2)
    torch.testing.assert_close(seen["input"][1].flatten(2), tokens)
    assert not torch.allclose(seen["output"][1], seen["input"][1])


def test_the_first_tap_of_a_dpt_head_changes_nothing() -> None:
    model = segmenter(DPT)
    with torch.inference_mode():
        before = model(image(1)).logits
        model.decoder.readout[0][0].weight.add_(1)
        model.decoder.fusion_1[0][0].weight.add_(1)
        assert torch.equal(model(image(1)).logits, before), "as published: the fusion ends before it"
        model.decoder.readout[1][0].weight.add_(1)
        assert not torch.equal(model(image(1)).logits, before)


@pytest.mark.parametrize(
    ("family", "timm", "taps"), [("swin", "swin_tiny_patch4_window7_224", (0, 1, 2, 3)), ("resnet", "resnet18", (1, 3))]
)
def test_staged_backbones_bring_maps_of_their_own_sizes(family: str, timm: str, taps: tuple[int, ...]) -> None:
    recipe = Recipe(
        name="staged",
        task="segmentation",
        backbone=BackboneRecipe(timm=timm, family=family, image_size=224, num_classes=3),
        canonicalizer=CanonicalizerRecipe(**{**SMALL_CANONICALIZER.model_dump(), "coarse_resolution": (6,)}),
        head=HeadRecipe(kind="dpt", taps=taps, width=4),
        augment_layer_id=(0,),
        unaugment_layer_id=(0,),
    )
    with torch.inference_mode():
        assert create_reference(recipe)(torch.zeros(1, 3, 224, 224)).logits.shape == (1, 3, 224, 224)


def test_a_trace_is_what_the_model_computes() -> None:
    for model in (segmenter(DPT), segmenter(LINEAR)):
        with torch.inference_mode():
            expected = model(image())
            found = trace(model, image())
        assert torch.equal(found.output.logits, expected.logits)
        for phi, solved in zip(expected.phis, found.output.phis, strict=True):
            assert torch.equal(phi.flatten(), solved.flatten())
        assert len(found.features) == len(model.backbone.blocks)


def test_a_tap_beyond_the_backbone_is_refused() -> None:
    with pytest.raises(RecipeError, match="the head taps place 90, but test_vit ends at"):
        segmenter(HeadRecipe(kind="dpt", taps=(1, 90)))


def test_a_checkpoint_without_the_head_is_refused() -> None:
    model = segmenter(LINEAR).float()
    weights = {k: v for k, v in published_state_dict(model).items() if not k.startswith("decoder.")}
    with pytest.raises(CheckpointError, match=r"'decoder.conv1.weight' 5x\d+x1x1 is missing"):
        load_weights(model, weights, Path("headless"))
