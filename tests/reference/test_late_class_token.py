"""A class token that joins at the first block gives timm's model; blocks before a late one read only patches."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from dec_export.errors import RecipeError
from dec_export.lowering.model import lower
from dec_export.reference.backbones.insertion import stage_outputs
from dec_export.reference.backbones.late_class_token import LateClassToken, sincos2d
from dec_export.reference.backbones.maps import token_map
from dec_export.reference.groups import ACTIONS
from dec_export.reference.model import DecModel, create_reference
from tests.conftest import SMALL_CANONICALIZER, photographs, randomised
from tests.helpers.models import DEPTH, PATCH, SIZE, WIDTH
from tests.helpers.models import late_token_recipe as recipe


def model(insert_at: int = 2, **backbone: Any) -> DecModel:
    return randomised(create_reference(recipe(insert_at, **backbone))).double()


def images(count: int = 2, size: int = SIZE) -> Tensor:
    return torch.from_numpy(photographs(size, count)).double()


def transformer(found: DecModel) -> LateClassToken:
    assert isinstance(found.backbone, LateClassToken)
    return found.backbone


def test_a_token_that_joins_first_is_timm_s_own_model() -> None:
    found = model(0)
    own = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIZE,
        num_classes=7,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=3,
    )
    own.load_state_dict(found.backbone.state_dict())
    own = own.double().eval()
    assert torch.equal(found(images()).logits, own(images()))
    assert torch.equal(transformer(found).forward_features(images()), own.forward_features(images()))


@pytest.mark.parametrize("insert_at", range(DEPTH))
def test_the_token_joins_with_its_position_at_its_block(insert_at: int) -> None:
    backbone = transformer(model(insert_at))
    tokens = backbone.patch_embed(images()) + backbone.pos_embed[:, 1:]
    for i, block in enumerate(backbone.blocks):
        if i == insert_at:
            tokens = torch.cat([(backbone.cls_token + backbone.pos_embed[:, :1]).expand(2, -1, -1), tokens], dim=1)
        tokens = block(tokens)
    assert torch.equal(backbone.head(backbone.norm(tokens)[:, 0]), backbone(images()))


@pytest.mark.parametrize("insert_at", [1, 3])
def test_blocks_before_it_see_patches_alone(insert_at: int) -> None:
    found = model(insert_at)
    backbone = transformer(found)
    with stage_outputs(found.recipe.backbone, backbone, range(DEPTH)) as outputs:
        backbone(images())
    patches = (SIZE // PATCH) ** 2
    assert [value.shape[1] - patches for value in outputs.values()] == [int(i >= insert_at) for i in range(DEPTH)]
    for place, value in outputs.items():
        gradient = torch.autograd.grad(value.sum(), backbone.cls_token, retain_graph=True, allow_unused=True)[0]
        assert (gradient is None) == (place < insert_at)


@pytest.mark.parametrize("name", [name for name, g in ACTIONS.items() if g.scale == 1])
def test_without_positions_a_map_turns_with_the_patches(name: str) -> None:
    # Whole patches change places, their pixels do not: then only positions tell one place from another.
    g, found = ACTIONS[name], model(3)
    backbone = transformer(found)
    with torch.no_grad():
        backbone.pos_embed.zero_()
    whole = images().unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (B, 3, rows, columns, PATCH, PATCH)
    moved = g.act(whole.permute(0, 1, 4, 5, 2, 3)).permute(0, 1, 4, 2, 5, 3).reshape(2, 3, SIZE, SIZE)

    def map_after(image: Tensor, place: int) -> Tensor:
        with stage_outputs(found.recipe.backbone, backbone, [place]) as outputs:
            backbone(image)
        return token_map(backbone, outputs[place])

    for place in range(DEPTH):
        assert torch.allclose(map_after(moved, place), g.act(map_after(images(), place)), rtol=0, atol=1e-12)


def test_linear_evaluation_reads_the_last_blocks() -> None:
    found = model(1, last_blocks=3)
    backbone = transformer(found)
    with stage_outputs(found.recipe.backbone, backbone, range(DEPTH)) as outputs:
        logits = backbone(images())
    tokens = torch.cat([backbone.norm(outputs[place])[:, 0] for place in (1, 2, 3)], dim=1)
    assert tokens.shape == (2, 3 * WIDTH)
    assert torch.equal(logits, backbone.head(tokens))


def test_positions_are_resampled_for_images_of_other_sizes() -> None:
    backbone = transformer(model(2))
    assert backbone.grid_of(images(size=80)) == (10, 10)
    assert backbone.patch_tokens(images(size=80)).shape == (2, 100, WIDTH)
    with torch.no_grad():
        backbone.pos_embed.fill_(0.5)
    embedded = backbone.patch_embed(images(size=80)) + 0.5
    assert torch.allclose(backbone.patch_tokens(images(size=80)), embedded, atol=1e-6), "a constant stays constant"


def test_fixed_positions_are_sines_and_cosines_of_row_and_column() -> None:
    rows, columns, channels = 5, 7, 12
    positions = sincos2d((rows, columns), channels)
    assert positions.shape == (1, 1 + rows * columns, channels)
    assert not positions[0, 0].any()
    for row in range(rows):
        for column in range(columns):
            angles = [[place / 10000 ** (i / 3) for i in range(3)] for place in (row, column)]
            expected = torch.tensor(
                [f(a) for half in angles for f in (torch.sin, torch.cos) for a in torch.tensor(half).double()]
            )
            found = positions[0, 1 + row * columns + column]
            assert torch.allclose(found, expected, rtol=0, atol=1e-7)
    assert len(positions[0].unique(dim=0)) == 1 + rows * columns


def test_fixed_positions_are_not_trained() -> None:
    fixed = transformer(create_reference(recipe(position_embedding="sincos2d")))
    assert not fixed.pos_embed.requires_grad
    assert torch.equal(fixed.pos_embed, sincos2d((8, 8), WIDTH).float())
    assert transformer(create_reference(recipe())).pos_embed.requires_grad


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"insert_at": DEPTH}, "cls_insert_layer must be a block of vit_tiny_patch16_224, 0 to 3, found 4"),
        ({"insert_at": 2, "last_blocks": 3}, "cls_insert_layer must be at most 1, found 2"),
        ({"timm": "vit_base_patch14_reg4_dinov2", "image_size": 56, "timm_args": {"depth": 4}}, "has register tokens"),
        ({"timm": "vit_small_patch16_36x1_224", "family": "vit", "timm_args": {"depth": 1}}, "0 to 0, found 2"),
        ({"timm": "test_vit", "image_size": 160, "timm_args": {}, "insert_at": 0}, "other patches than linear ones"),
        ({"timm": "vit_base_patch32_clip_224", "timm_args": {"depth": 3}}, "has a norm before its blocks"),
        ({"timm": "deit3_small_patch16_224", "timm_args": {}}, "no position of its own for the class token"),
        ({"timm": "vit_tiny_r_s16_p8_224", "image_size": 64}, "other patches than linear ones"),
        (
            {"timm_args": {"embed_dim": 18, "num_heads": 3, "depth": 4}, "position_embedding": "sincos2d"},
            "needs a width that divides by 4, found 18",
        ),
    ],
)
def test_a_model_that_cannot_have_it_is_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        create_reference(recipe(**changes))


def test_a_map_of_other_images_is_refused() -> None:
    found = model(2)
    with pytest.raises(RecipeError, match="Expected the tokens of 8 x 8 patches, found 100 tokens"):
        token_map(found.backbone, transformer(found).patch_tokens(images(size=80)))


def test_dec_goes_on_top() -> None:
    found = randomised(create_reference(recipe(2, SMALL_CANONICALIZER))).double()
    output = found(images())
    assert len(output.phis) == 2
    assert not torch.allclose(output.logits, found.backbone(images()), atol=1e-6)
    lowered = lower(found)(images())
    assert torch.allclose(lowered.logits, output.logits, rtol=0, atol=1e-9)
