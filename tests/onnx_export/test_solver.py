"""The `dec` functions compute the reference's solve in float64, and all forms compute the same results."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from dec_export.engines.onnxruntime import OnnxRuntimeEngine
from dec_export.errors import ExportError
from dec_export.formats import Format
from dec_export.forms import Forms, Solver
from dec_export.lowering.model import LoweredCanonicalizer, lower
from dec_export.onnx_export.bodies import OPSET
from dec_export.onnx_export.checks import check_dec_nodes, check_model
from dec_export.onnx_export.operators import DOMAIN, ConvolveV1, kind_of, read_config
from dec_export.onnx_export.passes.inline import inline
from dec_export.onnx_export.solver import OperatorCanonicalizer
from dec_export.onnx_export.tracing import export
from dec_export.recipe.model import CanonicalizerRecipe
from dec_export.reference.anderson import AndersonOptions, anderson, solve
from dec_export.reference.canonicalizer import Canonicalizer
from dec_export.reference.model import create_reference
from dec_export.reference.warp import Phi
from tests.conftest import needs_rtx, photographs, randomised
from tests.plugins.bodies import evaluate_model

# Attributes are float32 numbers: with constants that are such numbers, float64 agrees to its own rounding.
EPS, REGULARISATION = 2.0**-17, 2.0**-13
RECIPE = CanonicalizerRecipe(
    coarse_resolution=(4, 6), channels=(3, 4, 5), kernel_sizes=(5, 3), pool_rates=(3, 2), image_size=32
)


def canonicalizer(options: AndersonOptions, recipe: CanonicalizerRecipe = RECIPE) -> Canonicalizer:
    torch.manual_seed(3)
    model = Canonicalizer(recipe).double()
    for module in model.modules():
        if isinstance(module, nn.InstanceNorm2d):
            module.eps = EPS
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.options = replace(options, regularisation=REGULARISATION)
    return model


def model_of_layer(model: Canonicalizer, layer: int, *, looped: bool) -> onnx.ModelProto:
    """Return a model that calls one layer's function in float64."""
    size = (model.recipe.image_size, model.recipe.image_size)
    narrow = OperatorCanonicalizer(LoweredCanonicalizer(copy.deepcopy(model), size).float(), looped=looped)
    wide = OperatorCanonicalizer(LoweredCanonicalizer(model, size), looped=looped)
    functions, weights = narrow.solves[layer].functions(), wide.solves[layer].weights()
    initializers = [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()]
    r = model.recipe.coarse_resolution[layer]
    graph = helper.make_graph(
        [helper.make_node(f"Solve{layer}V1", ["image", *weights], ["phi"], name="solve", domain=DOMAIN)],
        "one",
        [helper.make_tensor_value_info("image", TensorProto.DOUBLE, ["batch", 3, *size])],
        [helper.make_tensor_value_info("phi", TensorProto.DOUBLE, ["batch", 2, r, r - 1])],
        initializers,
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)


def reference(model: Canonicalizer, layer: int, images: torch.Tensor) -> NDArray[np.float64]:
    """Return the published solve of each image, computed separately."""
    r = model.recipe.coarse_resolution[layer]
    found = []
    for image in images.split(1):
        z = solve(model.step_functions(image)[layer], Phi.ones(1, r, image).flatten(), model.options)
        found.append(torch.stack(list(Phi.unflatten(z, r)), dim=1))
    return torch.cat(found).detach().numpy()


def images(count: int = 4) -> torch.Tensor:
    return torch.from_numpy(photographs(32, count)).double()


def prepared(model: Canonicalizer, image: torch.Tensor) -> NDArray[np.float64]:
    return model.prepare(image).numpy()


def relative(found: NDArray[Any], truth: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("looped", [False, True])
# Nine iterations use more pairs than the memory of six holds; three have one accelerated iterate.
@pytest.mark.parametrize(
    "options",
    [
        AndersonOptions(),
        AndersonOptions(max_iter=9),
        AndersonOptions(max_iter=3),
        AndersonOptions(memory=2),
        AndersonOptions(damping=0.75),
    ],
    ids=str,
)
def test_the_functions_are_the_reference_in_float64(layer: int, looped: bool, options: AndersonOptions) -> None:
    model = canonicalizer(options)
    (phi,) = evaluate_model(model_of_layer(model, layer, looped=looped), {"image": prepared(model, images())})
    assert relative(phi, reference(model, layer, images())) <= 1e-9


@pytest.mark.parametrize("looped", [False, True])
def test_one_block_without_pooling_is_a_solver_too(looped: bool) -> None:
    recipe = CanonicalizerRecipe(
        coarse_resolution=(4,), channels=(3, 5), kernel_sizes=(1,), pool_rates=(1,), image_size=32, max_iter=4
    )
    model = canonicalizer(AndersonOptions(max_iter=4), recipe)
    (phi,) = evaluate_model(model_of_layer(model, 0, looped=looped), {"image": prepared(model, images())})
    assert relative(phi, reference(model, 0, images())) <= 1e-9


def residuals(model: Canonicalizer, layer: int, count: int = 4) -> NDArray[np.float64]:
    """Return the residuals (iterations, images) of accelerated iterates without an early end."""
    found = []
    for image in images(count).split(1):
        start = Phi.ones(1, model.recipe.coarse_resolution[layer], image).flatten()
        with torch.no_grad():
            found.append(torch.cat(anderson(model.step_functions(image)[layer], start, model.options).residuals))
    return torch.stack(found, dim=1).numpy()


@pytest.mark.parametrize("looped", [False, True])
def test_the_smallest_residual_wins_wherever_it_comes(looped: bool) -> None:
    model = canonicalizer(AndersonOptions(tolerance=0.0, damping=0.5))
    assert set(residuals(model, 0, 12).argmin(axis=0)) == {0, 1, 2}, "each iterate must be the best of some image"
    (phi,) = evaluate_model(model_of_layer(model, 0, looped=looped), {"image": prepared(model, images(12))})
    truth = reference(model, 0, images(12))
    assert max(relative(found, expected) for found, expected in zip(phi, truth, strict=True)) <= 1e-9


def test_in_a_loop_every_sample_ends_at_its_own_tolerance() -> None:
    tolerance = 0.3085
    history = residuals(canonicalizer(AndersonOptions(max_iter=10, tolerance=0.0)), 0, 12)
    after = [column[np.argmax(column < tolerance) :] for column in history.T if (column < tolerance).any()]
    assert 0 < len(after) < history.shape[1], "some samples must end, and some go on"
    # A sample that went on after its end, at once or once its residual had grown again, would find a better iterate.
    assert any(rest.min() < rest[0] for rest in after)
    assert any(rest[1:2] >= tolerance and rest.min() < rest[0] for rest in after)
    model = canonicalizer(AndersonOptions(max_iter=10, tolerance=tolerance))
    (phi,) = evaluate_model(model_of_layer(model, 0, looped=True), {"image": prepared(model, images(12))})
    assert relative(phi, reference(model, 0, images(12))) <= 1e-9


def test_a_loop_s_iterations_are_limited() -> None:
    model = canonicalizer(AndersonOptions(max_iter=4, tolerance=0.0))
    proto = inline(model_of_layer(model, 0, looped=True))
    (loop,) = (node for node in proto.graph.node if node.op_type == "Loop")
    limits = {node.output[0]: node for node in proto.graph.node if node.op_type == "Constant"}
    assert helper.get_attribute_value(limits[loop.input[0]].attribute[0]) == 2


@pytest.fixture(scope="module")
def forms(small_recipe: Any) -> dict[str, onnx.ModelProto]:
    lowered = lower(randomised(create_reference(small_recipe)))
    return {str(solver): export(lowered, Forms(solver, expose_phi=True)) for solver in Solver}


def test_each_form_is_what_it_says(forms: dict[str, onnx.ModelProto]) -> None:
    counts = {solver: Counter(node.op_type for node in proto.graph.node) for solver, proto in forms.items()}
    assert "Loop" not in counts["unroll"]
    assert counts["loop"]["Loop"] == 2
    assert {name for name in counts["plugin"] if name.startswith("Solve")} == {"Solve0V1", "Solve1V1"}
    functions = {function.name for function in forms["plugin"].functions}
    convolutions = {"Convolve64x64Pool4V1", "Convolve16x16Pool2V1"}
    others = {"WarpV1", "ActivateV1", "ScoreV1", "MixV1", "KeepV1"}
    assert functions == {*convolutions, *others, "Solve0V1", "Solve1V1"}
    for solver, proto in forms.items():
        with pytest.raises(ExportError, match="which"):
            check_model(proto, Solver.UNROLL if solver == "plugin" else Solver.PLUGIN)
    with pytest.raises(ExportError, match="The unroll form must not hold a Loop"):
        check_model(forms["loop"], Solver.UNROLL)


def test_the_unrolled_form_is_the_plugin_s_written_out(forms: dict[str, onnx.ModelProto]) -> None:
    assert inline(forms["plugin"]).graph.node == forms["unroll"].graph.node


def test_nodes_have_names_of_their_own(forms: dict[str, onnx.ModelProto]) -> None:
    for solver in ("unroll", "loop"):
        names = [node.name for node in forms[solver].graph.node]
        assert all(names)
        assert len(set(names)) == len(names)
    inner = [node.name for f in forms["plugin"].functions if f.name.startswith("Solve") for node in f.node]
    assert len(set(inner)) == len(inner)


def first_operator(proto: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    (solve_,) = (function for function in proto.functions if function.name == "Solve1V1")
    return next(node for node in solve_.node if node.op_type == op_type)


def change(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept if value is None else [*kept, helper.make_attribute(name, value)])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("config", None, "attribute 'config' is missing"),
        ("config", "{}", r"Node 'without a name' \(Convolve64x64Pool4V1\): its attribute 'config' is wrong at 'name'"),
        ("config", "no json", "'config' is wrong"),
        ("config", '{"name":"mine","pool":4.5}', r"Node 'mine' .* 'config' is wrong at 'channels_in'"),
        (
            "config",
            '{"name":"mine","channels_in":3,"channels_out":8,"height":64,"width":64,"kernel":5,"pool":2,'
            '"dtype":"float32"}',
            r"Node 'mine' .* is that of another operator, Convolve64x64Pool2V1",
        ),
        ("plugin_namespace", "other", "'plugin_namespace' must be dec, found other"),
    ],
)
def test_wrong_attributes_name_the_node(name: str, value: Any, message: str, forms: dict[str, onnx.ModelProto]) -> None:
    proto = copy.deepcopy(forms["plugin"])
    change(first_operator(proto, "Convolve64x64Pool4V1"), name, value)
    with pytest.raises(ExportError, match=message) as raised:
        check_dec_nodes(proto)
    assert "solve_1/f_0/convolve_0" in str(raised.value) or name == "config"


def test_wrong_tensors_name_the_node(forms: dict[str, onnx.ModelProto]) -> None:
    proto = copy.deepcopy(forms["plugin"])
    check_dec_nodes(proto)
    (call,) = (node for node in proto.graph.node if node.op_type == "Solve1V1")
    (solve_,) = (function for function in proto.functions if function.name == "Solve1V1")
    weight = call.input[list(solve_.input).index("weight_1")]
    (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == weight)
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), weight))
    with pytest.raises(ExportError, match=r"'solve_1/f_0/convolve_1' .* 'weight' must be float32 .* found float16"):
        check_dec_nodes(proto)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values[:, :, :1], weight))
    with pytest.raises(ExportError, match=r"'weight' must be float32 \(12, 8, 3, 3\), found float32 \(12, 8, 1, 3\)"):
        check_dec_nodes(proto)


def test_a_node_with_too_few_inputs_or_without_a_function_is_named(forms: dict[str, onnx.ModelProto]) -> None:
    proto = copy.deepcopy(forms["plugin"])
    first_operator(proto, "ScoreV1").input.pop()
    with pytest.raises(ExportError, match=r"'solve_1/f_0/score' .* expected 10 inputs and 1 outputs, found 9 and 1"):
        check_dec_nodes(proto)
    for name, message in (
        ("WarpV1", r"'solve_0/f_1/warp': the model has no function 'dec::WarpV1'"),
        ("Solve0V1", "the model has no function 'dec::Solve0V1'"),
    ):
        kept = [function for function in forms["plugin"].functions if function.name != name]
        del proto.functions[:]
        proto.functions.extend(kept)
        with pytest.raises(ExportError, match=message):
            check_dec_nodes(proto)


def test_unknown_operators_and_missing_inputs_of_a_solve_are_named(forms: dict[str, onnx.ModelProto]) -> None:
    proto = copy.deepcopy(forms["plugin"])
    (warp,) = (function for function in proto.functions if function.name == "WarpV1")
    warp.name = first_operator(proto, "WarpV1").op_type = "WarpV2"
    for function in proto.functions:
        for node in function.node:
            node.op_type = "WarpV2" if node.op_type == "WarpV1" else node.op_type
    with pytest.raises(ExportError, match="'WarpV2' is no operator of this version"):
        check_dec_nodes(proto)
    proto = copy.deepcopy(forms["plugin"])
    (call,) = (node for node in proto.graph.node if node.op_type == "Solve1V1")
    call.input.pop()
    with pytest.raises(ExportError, match=rf"Node '{call.name}': 'dec::Solve1V1' takes 20 inputs, found 19"):
        check_dec_nodes(proto)


@pytest.mark.parametrize(
    ("op_type", "fields", "message"),
    [
        ("ActivateV1", {"height": 2, "padding": 5}, "cannot be reflected by 5"),
        ("WarpV1", {"height": 2, "padding": 5}, "cannot be reflected by 5"),
        ("MixV1", {"memory": 2, "count": 5}, "cannot have 5 pairs in use"),
        ("Convolve3x3Pool5V1", {"height": 3, "width": 3, "pool": 5}, "has no window of 5 x 5"),
    ],
)
def test_impossible_sizes_are_refused(op_type: str, fields: dict[str, int], message: str) -> None:
    kind = kind_of(op_type)
    assert kind is not None
    whole: dict[str, Any] = {name: 4 for name in kind.model_fields if name not in ("name", "dtype")}
    whole |= {"offset": 1.0, "eps": 1e-5, "regularisation": 1e-4, "damping": 1.0}
    text = json.dumps({"name": "n", **{k: v for k, v in whole.items() if k in kind.model_fields}, **fields})
    text = text[:-1] + (', "dtype": "float32"}' if "dtype" in kind.model_fields else "}")
    with pytest.raises(ExportError, match=rf"Node 'n' .* {message}"):
        read_config(op_type, text)


def test_a_config_says_all_of_a_node_and_an_unknown_operator_is_refused() -> None:
    node = ConvolveV1(name="a", channels_in=1, channels_out=2, height=3, width=4, kernel=1, pool=1, dtype=Format.FP16)
    assert read_config("Convolve3x4Pool1V1", node.config() + "\0") == node
    with pytest.raises(ExportError, match="'Convolve3x4Pool1V2' is no operator"):
        read_config("Convolve3x4Pool1V2", node.config())
    with pytest.raises(ExportError, match="wrong"):
        read_config("Convolve3x4Pool1V1", node.config().replace('"a"', '"' + "a" * 5000 + '"'))


def test_operators_know_their_names_without_a_node() -> None:
    for name in ("WarpV1", "Convolve9x8Pool2V1", "ActivateV1", "ScoreV1", "MixV1", "KeepV1"):
        kind = kind_of(name)
        assert kind is not None
        inputs, outputs = kind.tensor_names()
        assert len(set(inputs + outputs)) == len(inputs + outputs)
    assert kind_of("Solve0V1") is None


@needs_rtx
def test_tensorrt_s_parser_takes_the_bodies_of_operators_it_does_not_know(
    forms: dict[str, onnx.ModelProto],
) -> None:
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(forms["plugin"].SerializeToString()), [
        parser.get_error(i).desc() for i in range(parser.num_errors)
    ]
    assert network.num_layers > 1000


def test_a_model_of_the_product_runs_each_form_alike(forms: dict[str, onnx.ModelProto]) -> None:
    image = photographs(160, 2)
    unrolled, loop, plugin = (OnnxRuntimeEngine(forms[form])(image) for form in ("unroll", "loop", "plugin"))
    for name, value in unrolled.items():
        np.testing.assert_array_equal(value, plugin[name])
        # A loop adds up the same numbers in other kernels.
        assert relative(loop[name], value) <= 1e-3
