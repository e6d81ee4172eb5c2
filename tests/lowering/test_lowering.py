"""Every rewriting equals the reference in float64 up to rounding, and is as near to it in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dec_export.lowering.block import LoweredBlock, LoweredHead, softplus, spatial_mean
from dec_export.lowering.matrices import (
    accumulation_matrix,
    adaptive_pool_matrix,
    box_matrix,
    reflect_matrix,
    resize_matrix,
    smoothing_matrix,
)
from dec_export.lowering.mixing import mixing_weights
from dec_export.lowering.model import LoweredCanonicalizer, LoweredStep, lower, unrolled_solve
from dec_export.lowering.search import invert_rows
from dec_export.lowering.warp import FixedResize, LoweredGrid, LoweredWarp
from dec_export.recipe.model import CanonicalizerRecipe, Recipe
from dec_export.reference import anderson as reference_anderson
from dec_export.reference import warp as reference_warp
from dec_export.reference.anderson import AndersonOptions
from dec_export.reference.canonicalizer import Canonicalizer, CanonicalizerNetwork, ResidualBlock
from dec_export.reference.model import DecModel, create_reference
from dec_export.reference.warp import Phi
from tests.conftest import SMALL_CANONICALIZER, photographs, randomised
from tests.helpers.models import MODELS, recipe_for

F64 = torch.float64
seeds = st.integers(0, 2**32 - 1)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# --- matrices -------------------------------------------------------------------------------------------


@given(st.integers(2, 40), st.integers(2, 40), st.integers(2, 40), st.integers(2, 40), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_resizes_are_two_matrix_products(h: int, w: int, h2: int, w2: int, corners: bool, antialias: bool) -> None:
    image = randn(2, 3, h, w)
    options = {"align_corners": corners, "antialias": antialias}
    rows, columns = resize_matrix(h, h2, **options), resize_matrix(w, w2, **options)
    close(rows @ image @ columns.T, F.interpolate(image, size=(h2, w2), mode="bilinear", **options))


@given(st.integers(1, 40), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_adaptive_pooling_is_a_matrix_product_with_uneven_windows(size: int, resolution: int) -> None:
    maps = randn(2, 3, size, size)
    matrix = adaptive_pool_matrix(size, resolution)
    close(matrix @ maps @ matrix.T, F.adaptive_avg_pool2d(maps, resolution))


@given(st.integers(3, 20), st.integers(3, 20))
@settings(max_examples=30, deadline=None)
def test_smoothing_is_separable(rows: int, columns: int) -> None:
    maps = randn(2, rows, columns)
    close(smoothing_matrix(rows) @ maps @ smoothing_matrix(columns).T, reference_warp.smooth(maps))


@given(st.integers(1, 20))
def test_accumulation_prepends_zero_and_cumulates(steps: int) -> None:
    values = randn(steps)
    close(accumulation_matrix(steps) @ values, F.pad(values, [1, 0]).cumsum(0))


@given(st.integers(5, 20), st.integers(0, 4))
def test_reflect_padding_is_a_choice_of_rows(size: int, padding: int) -> None:
    values = randn(2, 3, size, size)
    matrix = reflect_matrix(size, padding)
    close(matrix @ values @ matrix.T, F.pad(values, [padding] * 4, mode="reflect"))


# --- warp -----------------------------------------------------------------------------------------------


@given(seeds, st.integers(4, 12), st.integers(5, 40), st.integers(5, 40))
@settings(max_examples=40, deadline=None)
def test_the_grid_is_the_references(seed: int, resolution: int, height: int, width: int) -> None:
    phi = Phi(*(randn(2, resolution, resolution - 1, seed=seed + i) for i in range(2)))
    found = aligned(LoweredGrid(resolution, (height, width))(phi), (height, width))
    close(found, reference_warp.dense_grid(phi, (height, width)) * 2 - 1)


def aligned(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a grid (B, H, W, 2) for GridSample without aligned corners as a grid (B, 2, H, W) with them."""
    height, width = size
    return torch.stack([grid[..., 0] * width / (width - 1), grid[..., 1] * height / (height - 1)], 1)


@given(seeds, st.integers(0, 4), st.integers(8, 40), st.integers(8, 40))
@settings(max_examples=40, deadline=None)
def test_a_padded_warp_is_a_warp_that_is_padded(seed: int, padding: int, height: int, width: int) -> None:
    phi = Phi(*(randn(2, 6, 5, seed=seed + i) for i in range(2)))
    image = randn(2, 3, height, width, seed=seed)
    expected = F.pad(reference_warp.warp(phi, image), [padding] * 4, mode="reflect")
    close(LoweredWarp(6, (height, width), padding=padding)(phi, image), expected, 1e-10)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_no_coordinate_leaves_the_image_in_float32(seed: int) -> None:
    """GridSample pads with zeros, so a coordinate beyond the last pixel would darken it."""
    phi = Phi(*(10 * randn(2, 10, 9, seed=seed + i, dtype=torch.float32) for i in range(2)))
    bright = torch.full((2, 1, 37, 53), 100.0)
    warped = LoweredWarp(10, (37, 53)).float()(phi, bright)
    # One rounding of a coordinate of up to 53 pixels moves a pixel's weight by 2^-19 at most.
    assert (warped - 100).abs().max() <= 100 * 2.0**-18


def test_the_grid_is_nearer_to_float64_than_the_references_in_float32() -> None:
    phi = Phi(*(torch.sigmoid(randn(16, 10, 9, seed=i)).float().double() for i in range(2)))
    phi32 = Phi(*(axis.float() for axis in phi))
    truth = reference_warp.dense_grid(phi, (224, 224)) * 2 - 1
    reference = reference_warp.dense_grid(phi32, (224, 224)) * 2 - 1
    lowered = aligned(LoweredGrid(10, (224, 224)).float()(phi32).double(), (224, 224))
    assert (lowered - truth).norm() < 0.6 * (reference - truth).norm()


@pytest.mark.parametrize("inverse", [False, True], ids=["warp", "unwarp"])
@pytest.mark.parametrize("resolution", [None, (10, 9)])
def test_warps_are_the_references(inverse: bool, resolution: tuple[int, int] | None) -> None:
    phi, image = Phi(*(randn(2, 6, 5, seed=i) * 0.3 for i in range(2))), randn(2, 3, 14, 16)
    reference = reference_warp.unwarp if inverse else reference_warp.warp
    lowered = LoweredWarp(6, (14, 16), resolution, inverse=inverse)
    close(lowered(phi, image), reference(phi, image, resolution), 1e-10)


@pytest.mark.parametrize("inverse", [False, True], ids=["warp", "unwarp"])
@pytest.mark.parametrize("size", [(15, 14), (14, 15), (16, 16)])
@pytest.mark.parametrize("resolution", [None, (10, 9)])
def test_nearest_warps_are_the_references(
    inverse: bool, size: tuple[int, int], resolution: tuple[int, int] | None
) -> None:
    phi, image = Phi(*(randn(2, 6, 5, seed=i) * 0.3 for i in range(2))), randn(2, 3, *size)
    reference = reference_warp.unwarp if inverse else reference_warp.warp
    expected = reference(phi, image, resolution, "nearest")
    for dtype in (torch.float64, torch.float32):
        lowered = LoweredWarp(6, size, resolution, inverse=inverse, mode="nearest").to(dtype)
        found = lowered(Phi(phi.x.to(dtype), phi.y.to(dtype)), image.to(dtype)).double()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(("name", "family", "size"), [("test_resnet", "resnet", 160), ("test_vit", "vit", 160)])
def test_models_with_nearest_warps_agree(name: str, family: str, size: int) -> None:
    recipe = recipe_for(name, family, size, augment_layer_id=(-1, 0), interpolation_mode="nearest")
    model = randomised(create_reference(recipe)).double()
    image = torch.from_numpy(photographs(160, 2)).double()
    with torch.no_grad():
        nearest = model(image)
        bilinear = create_reference(recipe.model_copy(update={"interpolation_mode": "bilinear"})).double()
        bilinear.load_state_dict(model.state_dict())
        other = bilinear(image)
        close(lower(model)(image).logits, nearest.logits, 1e-9)
    close(nearest.phis[0].x, other.phis[0].x)
    assert (nearest.logits - other.logits).norm() > 1e-4 * other.logits.norm()


@given(seeds, st.integers(2, 30))
@settings(max_examples=40, deadline=None)
def test_counting_is_binary_search(seed: int, count: int) -> None:
    steps = torch.rand(2, 3, count - 1, generator=torch.Generator().manual_seed(seed), dtype=F64) + 0.01
    knots = F.pad(steps.cumsum(-1) / steps.sum(-1, keepdim=True), [1, 0])
    close((invert_rows(knots * 2 - 1) + 1) / 2, reference_warp.invert_rows(knots), 1e-10)


def test_a_fixed_resize_is_torchvisions() -> None:
    image = randn(1, 3, 32, 40)
    expected = F.interpolate(image, size=(24, 24), mode="bilinear", align_corners=False, antialias=True)
    close(FixedResize((32, 40), (24, 24), align_corners=False)(image), expected)


# --- mixing ---------------------------------------------------------------------------------------------


@given(seeds, st.integers(2, 6), st.floats(1e-6, 1e3))
@settings(max_examples=60, deadline=None)
def test_gram_schmidt_solves_the_bordered_system(seed: int, count: int, scale: float) -> None:
    differences = scale * randn(3, count, 24, seed=seed)
    close(mixing_weights(differences, 1e-4), reference_anderson.mixing_weights(differences, 1e-4), 1e-8)


def test_it_solves_where_all_differences_vanish_or_agree() -> None:
    """At a fixed point of the solver only the regularisation matters, and it gives all iterates equal weights."""
    for differences in (torch.zeros(1, 4, 24, dtype=F64), randn(1, 1, 24).expand(1, 4, 24)):
        close(mixing_weights(differences, 1e-4), torch.full((1, 4), 0.25, dtype=F64), 1e-9)


def test_it_keeps_more_digits_than_a_cholesky_factorisation_of_the_gram_matrix() -> None:
    """The residuals of a converging solve are nearly parallel and shrink. Both methods run in float32."""
    direction = randn(64, 1, 24)
    differences = torch.cat([direction * 10.0**-k + 1e-3 * randn(64, 1, 24, seed=k) for k in range(4)], dim=1)
    truth = reference_anderson.mixing_weights(differences.float().double(), 1e-4)
    narrow = differences.float()
    gram = narrow @ narrow.transpose(1, 2) + 1e-4 * torch.eye(4)
    cholesky = torch.cholesky_solve(torch.ones(64, 4, 1), torch.linalg.cholesky(gram))[..., 0]
    cholesky = cholesky / cholesky.sum(1, keepdim=True)
    mine = mixing_weights(narrow, 1e-4)
    assert (mine - truth).norm() < 0.1 * (cholesky - truth).norm()


# --- blocks ---------------------------------------------------------------------------------------------


def random_block(channels_in: int, channels_out: int, kernel: int, pool: int, seed: int = 0) -> ResidualBlock:
    torch.manual_seed(seed)
    block = ResidualBlock(channels_in, channels_out, kernel, pool).double()
    nn.init.normal_(block.norm1.weight)  # about half of them negative
    nn.init.normal_(block.norm1.bias)
    return block


@given(seeds, st.sampled_from([1, 3, 5]), st.integers(1, 4), st.integers(8, 30), st.integers(8, 30), st.booleans())
@settings(max_examples=60, deadline=None)
def test_blocks_agree(seed: int, kernel: int, pool: int, height: int, width: int, same: bool) -> None:
    block = random_block(3, 3 if same else 7, kernel, pool, seed)
    x = randn(2, 3, height, width, seed=seed)
    close(lowered_block(block, x), block(x), 1e-10)
    close(lowered_block(block, x + 3), block(x), 1e-9)


def lowered_block(block: ResidualBlock, x: Tensor) -> Tensor:
    """Return the output of a lowered block in the dtype of `x`, plus the offset that it subtracts."""
    lowered = LoweredBlock(block, (x.shape[-2], x.shape[-1])).to(x.dtype)
    result: Tensor = lowered(lowered.pad(x)) + lowered.offset
    return result


@pytest.mark.parametrize("offset", [0.0, 10.0, 1e4])
def test_large_offsets_do_not_cancel(offset: float) -> None:
    """For a bright image, E[y^2] - E[y]^2 of the uncentred image would lose every digit in float32."""
    recipe = CanonicalizerRecipe(
        coarse_resolution=(6,), channels=(3, 8, 12), kernel_sizes=(5, 3), pool_rates=(4, 2), scale_image=False
    )
    torch.manual_seed(0)
    canonicalizer = Canonicalizer(recipe).double()
    image = (offset + randn(2, 3, 64, 64)).float()
    with torch.no_grad():
        truth = canonicalizer(image.double())[0].flatten()
        lowered = LoweredCanonicalizer(canonicalizer, (64, 64)).float()(image)[0].flatten()
        reference = canonicalizer.float()(image)[0].flatten()
    assert (lowered - truth).norm() <= 2 * (reference - truth).norm()


def test_constant_maps_stay_finite() -> None:
    block = random_block(3, 8, 5, 4)
    x = torch.full((1, 3, 16, 16), 0.7, dtype=F64)
    close(lowered_block(block, x), block(x), 1e-6)


def test_a_norm_with_a_large_bias_stays_finite_in_float32() -> None:
    block = random_block(3, 4, 3, 2)
    with torch.no_grad():
        block.norm1.bias.fill_(200)
    x = randn(1, 3, 12, 12)
    found, expected = lowered_block(block, x.float()), block(x)
    assert torch.isfinite(found).all()
    close(found.double(), expected, 1e-5)


@given(st.floats(-30, 30), st.floats(-5, 5))
def test_softplus_less_a_constant_is_what_it_says(value: float, less: float) -> None:
    x = torch.tensor(value, dtype=F64)
    close(softplus(x, less), F.softplus(x, threshold=1000) - less, 1e-10)


@given(st.integers(1, 20), st.sampled_from([1, 3, 5]))
@settings(max_examples=30, deadline=None)
def test_the_mean_of_a_convolution_is_the_convolution_of_means(size: int, kernel: int) -> None:
    padded = randn(2, 3, size + kernel - 1, size + kernel - 1)
    weight = randn(4, 3, kernel, kernel, seed=1)
    boxes = box_matrix(size + kernel - 1, kernel)
    taps = boxes @ padded @ boxes.T
    expected = F.conv2d(padded, weight).mean(dim=(2, 3))
    close(taps.flatten(1) @ weight.flatten(1).T, expected, 1e-11)


def test_a_zero_scale_is_kept() -> None:
    block = random_block(3, 4, 3, 2)
    with torch.no_grad():
        block.norm1.weight[1] = 0
    x = randn(1, 3, 12, 12)
    close(lowered_block(block, x), block(x), 1e-10)


@given(st.floats(-700, 700))
def test_softplus_neither_overflows_nor_differs(value: float) -> None:
    x = torch.tensor(value, dtype=F64)
    close(softplus(x), F.softplus(x, threshold=1000) if value < 600 else x, 1e-12)


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_the_mean_in_two_levels_is_the_mean(height: int, width: int) -> None:
    maps = randn(2, 3, height, width)
    close(spatial_mean(maps), maps.mean((-2, -1), keepdim=True))


@pytest.mark.parametrize("resolution", [4, 6, 10])
def test_heads_agree(resolution: int) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(12, 2, 1).double(), nn.InstanceNorm2d(2, affine=True).double()
    nn.init.normal_(norm.weight)
    matrix = adaptive_pool_matrix(28, resolution)
    x = randn(2, 12, 28, 28) + 5
    expected = F.adaptive_avg_pool2d(norm(conv(x)), resolution)
    close(LoweredHead(conv, norm, matrix, matrix).double()(x), expected, 1e-10)


@pytest.mark.parametrize("size", [(64, 64), (72, 88)])
def test_steps_agree(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = CanonicalizerNetwork(SMALL_CANONICALIZER, 6).double()
    step = LoweredStep(network, SMALL_CANONICALIZER, size).double()
    image, phi = randn(2, 3, *size), Phi(*(torch.rand(2, 6, 5, dtype=F64) for _ in "xy"))
    close(step(phi, image).flatten(), network.step(phi, image).flatten(), 1e-10)
    ones = Phi.ones(2, 6, image)
    close(step.at_identity(image).flatten(), network.step(ones, image).flatten(), 1e-10)


# --- the solver and the whole model ---------------------------------------------------------------------


@given(seeds, st.integers(3, 12), st.floats(0.2, 3))
@settings(max_examples=40, deadline=None)
def test_the_unrolled_solver_is_the_references(seed: int, max_iter: int, gain: float) -> None:
    matrix = randn(10, 10, seed=seed)
    matrix *= gain / torch.linalg.matrix_norm(matrix, 2)
    start = randn(3, 10, seed=seed + 1)

    def f(z: Tensor) -> Tensor:
        return torch.sin(z @ matrix)

    options = AndersonOptions(max_iter=max_iter, tolerance=0)
    expected = reference_anderson.solve(f, start, options)
    close(unrolled_solve(f, start, f(start), options), expected, 1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_whole_models_agree_in_float64(kind: str) -> None:
    recipe = recipe_for(*MODELS[kind], unaugment_layer_id=(1, 2))
    model = randomised(create_reference(recipe)).double()
    check_lowering(model, recipe)


def test_features_resized_around_the_warp_agree() -> None:
    recipe = recipe_for(*MODELS["vit"], deform_resolution=(12, 11), unaugment_layer_id=(-1,))
    check_lowering(randomised(create_reference(recipe)).double(), recipe)


def check_lowering(model: DecModel, recipe: Recipe) -> None:
    image = torch.from_numpy(photographs(recipe.backbone.image_size, 2)).double()
    with torch.inference_mode():
        expected, found = model(image), lower(model)(image)
    for mine, theirs in zip(found.phis, expected.phis, strict=True):
        close(mine.flatten(), theirs.flatten(), 1e-10)
    assert (found.logits - expected.logits).norm() <= 1e-10 * expected.logits.norm()


def test_lowering_leaves_the_reference_as_it_is(small_model: DecModel) -> None:
    before = {key: value.clone() for key, value in small_model.state_dict().items()}
    lower(small_model)
    after = small_model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_relative_position_biases_become_constants() -> None:
    model = randomised(create_reference(recipe_for(*MODELS["beit"])))
    lowered = lower(model)
    attention, frozen = (m.backbone.blocks[0].attn for m in (model, lowered))
    assert frozen._get_rel_pos_bias() is frozen.frozen_relative_position_bias
    assert torch.equal(frozen.frozen_relative_position_bias, attention._get_rel_pos_bias())
    assert attention.relative_position_bias_table.abs().sum() > 0, "a zero bias would prove nothing"
