"""The exported ONNX model is valid and portable, has a dynamic batch, and holds no paths of the exporting machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dec_export.bundle.store import Bundle
from dec_export.engines.batches import check_batches
from dec_export.errors import ExportError
from dec_export.forms import Forms
from dec_export.lowering.model import lower
from dec_export.onnx_export import tracing as exporting
from dec_export.onnx_export.checks import check_model
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel, create_reference
from tests.conftest import photographs, randomised
from tests.helpers.graphs import linear_model
from tests.helpers.models import MODELS, recipe_for


@pytest.fixture(scope="module")
def model(small_recipe: Recipe) -> DecModel:
    return randomised(create_reference(small_recipe))


@pytest.fixture(scope="module")
def proto(model: DecModel) -> onnx.ModelProto:
    return exporting.export(lower(model))


def run(proto: onnx.ModelProto, image: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})


def test_it_is_opset_18_in_standard_operators_alone(proto: onnx.ModelProto) -> None:
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 18)]
    assert not proto.functions


def test_inputs_and_outputs_are_the_contract(proto: onnx.ModelProto) -> None:
    def describe(value: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
        tensor = value.type.tensor_type
        return value.name, tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]

    (image,) = proto.graph.input
    (logits,) = proto.graph.output
    batch = describe(image)[2][0]
    assert isinstance(batch, str)
    assert describe(image) == ("image", TensorProto.FLOAT, [batch, 3, 160, 160])
    assert describe(logits) == ("logits", TensorProto.FLOAT, [batch, 10])


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_every_batch_runs_and_agrees_with_single_images(proto: onnx.ModelProto, batch: int) -> None:
    image = photographs(160, 5)[:batch]
    (together,) = run(proto, image)
    alone = np.concatenate([run(proto, image[i : i + 1])[0] for i in range(batch)])
    assert together.shape == (batch, 10)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-3 * np.abs(alone).max())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["registers", "beit", "swin"])
def test_other_layouts_export_with_a_dynamic_batch(kind: str) -> None:
    """The models have warps, unwarps and resized features, and run at batch sizes other than the exporter's."""
    recipe = recipe_for(*MODELS[kind], unaugment_layer_id=(1,), deform_resolution=(10, 10))
    # The image at place -1 would be shrunk to 10 pixels as well for Swin; only its stages are of interest.
    recipe = recipe.model_copy(update={"augment_layer_id": (0, 1)})
    reference = randomised(create_reference(recipe))
    proto = exporting.export(lower(reference), Forms(expose_phi=True))
    image = photographs(recipe.backbone.image_size, 3)
    outputs = run(proto, image)
    with torch.inference_mode():
        single = reference(torch.from_numpy(image)).logits.numpy()
        truth = reference.double()(torch.from_numpy(image).double()).logits.numpy()
    assert [output.shape[0] for output in outputs] == [3] * 5
    assert np.linalg.norm(outputs[0] - truth) <= 2 * np.linalg.norm(single - truth)


def test_no_path_of_the_exporting_machine_is_in_the_file(proto: onnx.ModelProto) -> None:
    content = proto.SerializeToString()
    for trace in (b"site-packages", b".py", str(Path.home()).encode(), str(Path.cwd()).encode()):
        assert trace not in content


def test_phis_are_inner_tensors_and_outputs_on_request(model: DecModel, proto: onnx.ModelProto) -> None:
    names = ["phi_x_0", "phi_y_0", "phi_x_1", "phi_y_1"]
    assert exporting.phi_names(2) == names
    exposed = exporting.with_outputs(proto, names)
    assert [o.name for o in proto.graph.output] == ["logits"], "the original must stay as it is"
    assert [o.name for o in exposed.graph.output] == ["logits", *names]
    image = photographs(160, 2)
    with torch.inference_mode():
        phis = model.double()(torch.from_numpy(image).double()).phis
    model.float()
    expected = [axis.numpy() for phi in phis for axis in phi]
    for found, truth in zip(run(exposed, image)[1:], expected, strict=True):
        assert np.linalg.norm(found - truth) < 1e-2 * np.linalg.norm(truth)


def test_a_model_of_someone_else_has_no_phis() -> None:
    with pytest.raises(ExportError, match="has no tensor named phi_x_0"):
        exporting.with_outputs(linear_model(["n", 4], ["n", 4]), ["phi_x_0"])


def test_the_batch_is_dynamic_in_the_bundle_too(small_bundle: Bundle) -> None:
    (image,) = small_bundle.manifest.inputs
    assert image.shape[1:] == (3, 160, 160)
    assert isinstance(image.shape[0], str)


# --- the checks themselves ------------------------------------------------------------------------------


def test_a_good_model_passes() -> None:
    check_model(linear_model(["n", 4], ["n", 4]))


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (linear_model([2, 4], [2, 4]), "share one free batch"),
        (linear_model(["n", 4], ["m", 4]), "share one free batch"),
        (linear_model(["n", "w"], ["n", "w"]), "free dimension"),
        (linear_model(["n", 4], ["n", 4], domain="com.microsoft"), "com.microsoft"),
        (linear_model(["n", 4], ["n", 5]), "not valid ONNX"),
        (
            linear_model(["n", 4, 4], ["n"], helper.make_node("Det", ["image"], ["logits"], name="node")),
            "must not hold a Det",
        ),
        (
            linear_model(
                ["n", 1, 4, 4],
                ["n", 1, 2, 2],
                helper.make_node(
                    "Resize",
                    ["image", "", "", "sizes"],
                    ["logits"],
                    name="node",
                    mode="linear",
                    antialias=1,
                    axes=[2, 3],
                ),
                initializers=[numpy_helper.from_array(np.array([2, 2]), "sizes")],
            ),
            "antialiased Resize",
        ),
    ],
    ids=["static batch", "two batches", "free width", "foreign domain", "wrong shape", "forbidden op", "antialias"],
)
def test_a_bad_model_is_refused(proto: onnx.ModelProto, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_model(proto)


SPECIALISED = {
    "reshape": (helper.make_node("Reshape", ["image", "constant"], ["logits"]), np.array([2, 3, 8, 8])),
    "constant": (helper.make_node("Add", ["image", "constant"], ["logits"]), np.ones((2, 3, 8, 8), np.float32)),
    "not finite": (helper.make_node("Div", ["image", "constant"], ["logits"]), np.zeros(1, np.float32)),
}


@pytest.mark.parametrize("kind", SPECIALISED)
def test_a_batch_that_is_only_declared_free_is_found_by_running(kind: str) -> None:
    """The static checks accept such a model, so the exported model is also run at other batch sizes."""
    node, constant = SPECIALISED[kind]
    shape = ["n", 3, 8, 8]
    proto = linear_model(shape, shape, node, initializers=[numpy_helper.from_array(constant, "constant")])
    check_model(proto)
    with pytest.raises(ExportError, match=r"does not run at every batch size|not finite"):
        check_batches(proto, 8)


def test_a_free_batch_is_free() -> None:
    check_batches(linear_model(["n", 3, 8, 8], ["n", 3, 8, 8]), 8)


def test_a_model_beyond_the_format_is_refused(
    model: DecModel, proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_MAX_BYTES", 1000)
    with pytest.raises(ExportError, match="choose a smaller backbone"):
        exporting.save(proto, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="choose a smaller backbone"):
        exporting.export(lower(model))
    assert not list(tmp_path.iterdir())
