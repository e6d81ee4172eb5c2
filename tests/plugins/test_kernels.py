"""Every interpreted kernel is compared with its operator's body in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dec_export.errors import EngineError
from dec_export.formats import SOLVER_FORMATS, Format
from dec_export.lowering.warp import LoweredGrid
from dec_export.onnx_export.operators import (
    ActivateV1,
    ConvolveV1,
    KeepV1,
    MixV1,
    Operator,
    ScoreV1,
    TensorSpec,
    WarpV1,
)
from dec_export.onnx_export.solver import blur_matrices
from dec_plugins.plans import plan_kernel
from tests.plugins.bodies import evaluate, model_of
from tests.plugins.interpreter import interpret

UNIT_ROUNDOFF = 2.0**-24
Arrays = dict[str, NDArray[Any]]

# One example costs a tenth of a second; the first one starts a process.
few = settings(max_examples=12, deadline=None)
sizes = st.integers(5, 23)
batches = st.sampled_from([1, 3])
resolutions = st.sampled_from([4, 6, 10])
storages = st.sampled_from(SOLVER_FORMATS)
seeds = st.integers(0, 2**16)


def random_inputs(operator: Operator, batch: int, seed: int, **given: NDArray[Any]) -> Arrays:
    generator = np.random.default_rng(seed)
    inputs: Arrays = {}
    for spec in operator.inputs():
        shape = [batch if n is None else n for n in spec.shape]
        values = given.get(spec.name)
        values = generator.standard_normal(shape) if values is None else np.broadcast_to(values, shape)
        inputs[spec.name] = np.ascontiguousarray(values.astype(spec.format.numpy))
    return inputs


def run(operator: Operator, inputs: Arrays) -> list[NDArray[np.float64]]:
    outputs = interpret(operator, [torch.from_numpy(value) for value in inputs.values()])
    for spec, output in zip(operator.outputs(), outputs, strict=True):
        assert output.dtype == spec.format.torch
    return [output.double().numpy() for output in outputs]


def run_body(operator: Operator, inputs: Arrays) -> list[NDArray[np.float64]]:
    """Run the body in the operator's own types in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = model_of(operator).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [np.asarray(value, dtype=np.float64) for value in session.run(None, inputs)]


def rel_l2(found: NDArray[Any], truth: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - truth) / max(np.linalg.norm(truth), 1e-30))


def assert_equal_to_body(operator: Operator, inputs: Arrays) -> None:
    """As near to the body in float64 as the body in its own types is, but for a factor of one draw against another.

    On small maps that one draw may be lucky: what rounding the inputs once does to the exact result is noise, too.
    """
    truths, floors, found = evaluate(operator, inputs), run_body(operator, inputs), run(operator, inputs)
    rounded = evaluate(operator, rounded_once(inputs))
    for spec, truth, floor, moved, value in zip(operator.outputs(), truths, floors, rounded, found, strict=True):
        assert value.shape == truth.shape
        smallest = spec.format.unit_roundoff
        assert rel_l2(value, truth) <= 4 * max(rel_l2(floor, truth), rel_l2(moved, truth), smallest), spec.name


def rounded_once(inputs: Arrays) -> Arrays:
    """Return the inputs in float64, each with an error of half a unit in the last place of float32."""
    generator = np.random.default_rng(0)
    return {
        name: value.astype(np.float64) * (1 + UNIT_ROUNDOFF * generator.choice([-1.0, 1.0], value.shape))
        for name, value in inputs.items()
    }


def warp_matrices(node: WarpV1) -> Arrays:
    grid = LoweredGrid(node.resolution, (node.height, node.width), node.padding)
    rows, steps = blur_matrices(node.resolution)
    matrices = {"blur_rows": rows, "blur_steps": steps}
    matrices |= {name: getattr(grid, name) for name in ("spread_x", "accumulate_x", "accumulate_y", "spread_y")}
    return {name: value.numpy() for name, value in matrices.items()}


@few
@given(sizes, sizes, resolutions, st.integers(0, 3), batches, storages, seeds)
def test_warp(height: int, width: int, resolution: int, padding: int, batch: int, dtype: Format, seed: int) -> None:
    node = WarpV1(
        name="warp", channels=3, height=height, width=width, padding=padding, resolution=resolution, dtype=dtype
    )
    # Smooth images: a kink at a pixel would multiply a coordinate's rounding by whatever the noise is.
    y, x = np.mgrid[:height, :width]
    image = np.sin(0.3 * x + 0.2 * y + np.arange(3)[:, None, None])
    assert_equal_to_body(node, random_inputs(node, batch, seed, image=image, **warp_matrices(node)))


def test_a_constant_phi_warps_nothing_and_extreme_steps_stay_inside() -> None:
    node = WarpV1(name="warp", channels=1, height=12, width=9, padding=2, resolution=4, dtype=Format.FP32)
    image = np.arange(12 * 9, dtype=np.float32).reshape(1, 1, 12, 9) / 100
    (same,) = run(node, random_inputs(node, 1, 0, image=image, phi=np.ones(1), **warp_matrices(node)))
    padded = np.pad(image[0, 0], 2, mode="reflect")
    # A coordinate's rounding, times the steepest slope of the image.
    np.testing.assert_allclose(same[0, 0], padded, atol=12 * 9 * UNIT_ROUNDOFF)
    steep = np.zeros((1, 2, 4, 3))
    steep[..., 0] = 40.0
    (extreme,) = run(node, random_inputs(node, 1, 0, image=image, phi=steep, **warp_matrices(node)))
    assert image.min() <= extreme.min()
    assert extreme.max() <= image.max()


def test_a_phi_that_is_no_number_gives_no_numbers() -> None:
    node = WarpV1(name="warp", channels=1, height=9, width=8, padding=0, resolution=4, dtype=Format.FP32)
    inputs = random_inputs(node, 2, 0, **warp_matrices(node))
    inputs["phi"][0] = np.nan
    (warped,) = run(node, inputs)
    assert np.isnan(warped[0]).all()
    assert np.isfinite(warped[1]).all()


@few
@given(
    sizes,
    sizes,
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 5),
    batches,
    storages,
    seeds,
)
@example(9, 11, 3, 8, 5, 4, 3, Format.FP32, 0)  # partial bands and windows, and more channels than a tile's depth
@example(8, 56, 64, 128, 3, 2, 1, Format.FP32, 1)
@example(8, 64, 3, 64, 5, 4, 1, Format.FP16, 2)
def test_convolve(
    height: int,
    width: int,
    channels_in: int,
    channels_out: int,
    kernel: int,
    pool: int,
    batch: int,
    dtype: Format,
    seed: int,
) -> None:
    node = ConvolveV1(
        name="convolve",
        channels_in=channels_in,
        channels_out=channels_out,
        height=height,
        width=width,
        kernel=kernel,
        pool=min(pool, height, width),
        dtype=dtype,
    )
    assert_equal_to_body(node, random_inputs(node, batch, seed))


def test_the_variance_survives_a_large_offset() -> None:
    """The mean is a thousand standard deviations, so E[y^2] - E[y]^2 would lose all digits."""
    node = ConvolveV1(
        name="convolve", channels_in=1, channels_out=16, height=24, width=30, kernel=1, pool=4, dtype=Format.FP32
    )
    inputs = random_inputs(node, 1, 0, weight=np.ones(1))
    inputs["padded"] = (inputs["padded"] + 1000).astype(np.float32)
    truth = evaluate(node, inputs)[1][..., 1]
    _, moments = run(node, inputs)
    bands = inputs["padded"].reshape(1, 6, -1)
    naive = (bands**2).mean(-1, dtype=np.float32) - bands.mean(-1, dtype=np.float32) ** 2
    bound = 8 * UNIT_ROUNDOFF * 1000
    assert np.abs(moments[..., 1] / truth - 1).max() <= bound
    assert np.abs(naive[:, None] / truth - 1).max() > 10 * bound


def test_a_constant_image_has_no_variance() -> None:
    node = ConvolveV1(
        name="convolve", channels_in=3, channels_out=5, height=9, width=7, kernel=3, pool=2, dtype=Format.FP32
    )
    inputs = random_inputs(node, 2, 3, padded=np.full(1, 7.5))
    peak, moments = run(node, inputs)
    mean = 7.5 * inputs["weight"].astype(np.float64).sum(axis=(1, 2, 3))
    scale = 7.5 * np.abs(inputs["weight"]).sum()
    np.testing.assert_allclose(moments[..., 0], np.broadcast_to(mean[:, None], (2, 5, 5)), atol=scale * UNIT_ROUNDOFF)
    np.testing.assert_allclose(peak, np.broadcast_to(mean[:, None, None], peak.shape), atol=scale * UNIT_ROUNDOFF)
    assert moments[..., 1].max() <= (scale * UNIT_ROUNDOFF) ** 2


def normalised(height: int, width: int, bands: int, dtype: Format, seed: int) -> tuple[dict[str, Any], Arrays]:
    """Fields of a node, and shares and moments that can be: shares sum to one, variances are positive."""
    generator = np.random.default_rng(seed)
    shares = generator.uniform(0.5, 1, (bands, 1))
    moments = generator.standard_normal((1, 1, bands, 2))
    moments[..., 1] = moments[..., 1] ** 2 + 0.1
    fields = {"height": height, "width": width, "bands": bands, "offset": 1.3, "eps": 1e-5, "dtype": dtype}
    return fields, {"shares": shares / shares.sum(), "moments": moments}


@few
@given(sizes, sizes, st.integers(1, 9), st.integers(1, 40), st.integers(0, 3), batches, storages, seeds)
def test_activate(
    height: int, width: int, channels: int, bands: int, padding: int, batch: int, dtype: Format, seed: int
) -> None:
    fields, statistics = normalised(height, width, bands, dtype, seed)
    node = ActivateV1(name="activate", channels=channels, padding=padding, **fields)
    assert_equal_to_body(node, random_inputs(node, batch, seed, **statistics))


def test_softplus_neither_overflows_nor_loses_its_tail() -> None:
    fields, statistics = normalised(8, 8, 1, Format.FP32, 0)
    node = ActivateV1(name="activate", channels=1, padding=0, **{**fields, "offset": 0.0})
    statistics["moments"] = np.array([0.0, 1.0])
    peak = np.linspace(-80, 3e4, 64).reshape(1, 1, 8, 8)
    peak[0, 0, 0, :3] = [-80, -10, 0]
    inputs = random_inputs(node, 1, 0, peak=peak, scale=np.ones(1), shift=np.zeros(1), **statistics)
    (found,) = run(node, inputs)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, evaluate(node, inputs)[0], rtol=1e-5, atol=UNIT_ROUNDOFF)


@few
@given(sizes, sizes, st.integers(1, 40), st.integers(1, 9), resolutions, batches, storages, seeds)
@example(28, 28, 12, 28, 10, 1, Format.FP32, 0)  # windows of the adaptive pooling that overlap
@example(5, 13, 22, 1, 4, 1, Format.FP16, 10376)  # scores near 0 and 1, where the body's own error is small by luck
def test_score(
    height: int, width: int, channels: int, bands: int, resolution: int, batch: int, dtype: Format, seed: int
) -> None:
    fields, statistics = normalised(height, width, bands, dtype, seed)
    node = ScoreV1(name="score", channels=channels, resolution=resolution, **fields)
    assert_equal_to_body(node, random_inputs(node, batch, seed, **statistics))


@few
@given(resolutions, st.integers(2, 6), st.data(), st.sampled_from([1.0, 0.7]), batches, seeds)
def test_mix(resolution: int, memory: int, data: st.DataObject, damping: float, batch: int, seed: int) -> None:
    count = data.draw(st.integers(1, memory))
    node = MixV1(name="mix", resolution=resolution, memory=memory, count=count, regularisation=1e-4, damping=damping)
    assert_equal_to_body(node, random_inputs(node, batch, seed))


def test_what_is_not_in_use_has_no_weight() -> None:
    node = MixV1(name="mix", resolution=4, memory=5, count=2, regularisation=1e-4, damping=1.0)
    inputs = random_inputs(node, 2, 5)
    others = {**inputs, "iterates": inputs["iterates"].copy(), "images": inputs["images"].copy()}
    others["iterates"][:, :4] *= 100
    others["images"][:, :4] -= 7
    mixed, remembered, _ = run(node, inputs)
    np.testing.assert_array_equal(remembered[:, :-1], inputs["iterates"][:, 1:])
    np.testing.assert_array_equal(remembered[:, -1], inputs["iterate"])
    np.testing.assert_array_equal(mixed, run(node, others)[0])


def test_a_fixed_point_is_mixed_to_itself() -> None:
    """If every image in the memory is the iterate itself, any weights of sum one give a mean of iterates."""
    node = MixV1(name="mix", resolution=6, memory=3, count=3, regularisation=1e-4, damping=1.0)
    point = np.random.default_rng(0).uniform(size=(1, 2, 6, 5))
    inputs = random_inputs(node, 1, 0, iterates=point[:, None], images=point[:, None], iterate=point, image=point)
    np.testing.assert_allclose(run(node, inputs)[0], point, rtol=4 * UNIT_ROUNDOFF)


@few
@given(resolutions, batches, st.floats(0, 200, width=32), seeds)
def test_keep(resolution: int, batch: int, smallest: float, seed: int) -> None:
    node = KeepV1(name="keep", resolution=resolution)
    inputs = random_inputs(node, batch, seed, smallest=np.full(1, smallest))
    assert_equal_to_body(node, inputs)


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_only_a_smaller_residual_is_kept(factor: float) -> None:
    node = KeepV1(name="keep", resolution=6)
    inputs = random_inputs(node, 1, 1)
    residual = ((inputs["image"] - inputs["iterate"]).astype(np.float64) ** 2).sum()
    inputs["smallest"][:] = factor * residual
    best, smallest = run(node, inputs)
    np.testing.assert_array_equal(best, inputs["image" if factor > 1 else "best"])
    assert smallest == pytest.approx(min(factor, 1) * residual, rel=1e-6)


def test_a_point_that_is_no_number_is_never_the_best() -> None:
    node = KeepV1(name="keep", resolution=4)
    inputs = random_inputs(node, 1, 0, image=np.full(1, np.nan), smallest=np.ones(1))
    best, smallest = run(node, inputs)
    np.testing.assert_array_equal(best, inputs["best"])
    assert smallest == 1


@pytest.mark.parametrize("operator", [ConvolveV1, ScoreV1])
def test_sizes_that_no_kernel_takes_are_refused_by_name(operator: type[Operator]) -> None:
    fields: dict[str, Any] = {"name": "solve_0/f_2/large", "dtype": Format.FP32, "height": 99, "width": 99}
    if operator is ConvolveV1:
        fields |= {"channels_in": 1, "channels_out": 1, "kernel": 3, "pool": 12}
    else:
        fields |= {"channels": 1, "bands": 1, "offset": 1.0, "eps": 1e-5, "resolution": 4}
    with pytest.raises(EngineError, match=r"'solve_0/f_2/large' .* build with --solver unroll"):
        plan_kernel(operator(**fields))


def test_an_operator_without_a_kernel_is_refused_by_name() -> None:
    class OtherV1(Operator):
        OP_TYPE = "OtherV1"

        def inputs(self) -> list[TensorSpec]:
            return []

        def outputs(self) -> list[TensorSpec]:
            return []

    with pytest.raises(EngineError, match=r"Node 'solve_0/other' \(OtherV1\): the plugin has no such kernel"):
        plan_kernel(OtherV1(name="solve_0/other"))
