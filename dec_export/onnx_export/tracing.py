"""The export of a lowered model to one ONNX file."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from dec_export.errors import ExportError
from dec_export.formats import Format
from dec_export.forms import Forms, Solver
from dec_export.libraries import version_of
from dec_export.lowering.model import LoweredModel, lower
from dec_export.names import LOGITS, feature_name, is_inner, map_name, phi_names
from dec_export.onnx_export.checks import check_model
from dec_export.onnx_export.passes.inline import inline
from dec_export.onnx_export.passes.show import ShowTensors
from dec_export.onnx_export.solver import OperatorCanonicalizer
from dec_export.recipe.model import Recipe
from dec_export.reference.backbones.insertion import stage_outputs
from dec_export.reference.backbones.maps import tapped_map
from dec_export.reference.backbones.stages import check_tap, stage_count
from dec_export.reference.finite import finite_samples, nan_unless
from dec_export.reference.model import DecModel, predict
from dec_export.reference.warp import Phi

OPSET = 18
INPUT = "image"
# The example has two images, because the exporter would take a batch of one for a constant.
_EXAMPLE_BATCH = 2
# Protobuf cannot serialise more bytes; larger models would need external data.
_MAX_BYTES = 2**31 - 1


def _phi_names_of(model: LoweredModel) -> list[str]:
    return phi_names(model.recipe.layers)


class _FlatOutputs(nn.Module):
    """A model that returns a flat tuple, as an ONNX graph does.

    The tuple holds logits, phi_x_0, phi_y_0, phi_x_1, ..., features_0, ..., and the map after block or stage `tap`.
    """

    def __init__(self, model: LoweredModel, tap: int | None = None) -> None:
        super().__init__()
        self.model, self.tap = model, tap
        recipe, backbone = model.recipe, model.backbone
        size = recipe.image_size
        places = range(stage_count(recipe, backbone))
        with torch.no_grad(), stage_outputs(recipe.backbone, backbone, places) as features:
            predict(recipe, backbone, model.decoder, torch.zeros(1, 3, size, size), [])
        self.places = sorted(features)
        self.feature_names = [feature_name(place) for place in self.places]
        self.inner_names = [*_phi_names_of(model), *self.feature_names]
        self.map_names = [] if tap is None else [map_name(tap)]
        self.names = [LOGITS, *self.inner_names, *self.map_names]

    def _map(self, image: Tensor, phis: Sequence[Phi], tap: int, features: Tensor) -> Tensor:
        shown = tapped_map(self.model.recipe.backbone, self.model.backbone, tap, features, image.dtype)
        return nan_unless(finite_samples(image, phis), shown)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        recipe, backbone = self.model.recipe.backbone, self.model.backbone
        with stage_outputs(recipe, backbone, self.places) as features:
            logits, phis = self.model(image)
        maps = [] if self.tap is None else [self._map(image, phis, self.tap, features[self.tap])]
        return (logits, *(axis for phi in phis for axis in phi), *(features[place] for place in self.places), *maps)


def export(model: LoweredModel, forms: Forms = Forms()) -> onnx.ModelProto:
    """Return the model as ONNX: `image` (batch, 3, H, W) float32 -> `logits`, (batch, classes[, H, W]).

    model: the lowered model, in the precisions of `forms`.
    forms.solver: the form in which the solver's iterations are written.
    forms.tap: the block or stage whose feature map is a further output, `feature_map_{tap}` (batch, C, h, w); for a
    transformer it is the map of its patch tokens, and it is normalised as `tapped_map` explains.
    forms.expose_phi: whether the solved phis are outputs under the names of `phi_names`.
    The graph holds the phis, the features after each block, and the iterates of an unrolled solver as tensors with the
    names of `dec_export.names`, even where they are not outputs.
    Raises ExportError when the result fails a check of `onnx_export.checks`, RecipeError when there is no block `tap`.
    """
    if forms.tap is not None:
        check_tap(model.recipe, model.backbone, forms.tap)
    operators = OperatorCanonicalizer(model.canonicalizer, looped=forms.solver == Solver.LOOP)
    module = _FlatOutputs(_with_canonicalizer(model, operators), forms.tap)
    proto = _trace(module, model.recipe, module.names)
    proto.functions.extend(operators.functions())
    if forms.solver != Solver.PLUGIN:
        proto = inline(proto)
    exposed = _phi_names_of(model) if forms.expose_phi else []
    _hide_outputs(proto, [name for name in module.inner_names if name not in exposed])
    check_model(proto, forms.solver)
    return proto


def export_phis(model: LoweredModel) -> onnx.ModelProto:
    """Return the unrolled canonicalizers alone: `image` (batch, 3, H, W) -> the phis, by the names of `phi_names`."""
    operators = OperatorCanonicalizer(model.canonicalizer)
    names = _phi_names_of(model)
    proto = _trace(_Phis(operators), model.recipe, names)
    proto.functions.extend(operators.functions())
    proto = inline(proto)
    check_model(proto)
    return proto


class _Phis(nn.Module):
    def __init__(self, canonicalizer: nn.Module) -> None:
        super().__init__()
        self.canonicalizer = canonicalizer

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(axis for phi in self.canonicalizer(image) for axis in phi)


def export_traced(model: LoweredModel) -> onnx.ModelProto:
    """Return the model of `export`, traced from the lowered PyTorch modules without `dec` functions.

    Its export takes longer. It serves to measure the effect of a change of the modules.
    """
    module = _FlatOutputs(model)
    proto = _trace(module, model.recipe, module.names)
    _hide_outputs(proto, module.feature_names)
    return proto


def _with_canonicalizer(model: LoweredModel, canonicalizer: nn.Module) -> LoweredModel:
    """Return the model with another canonicalizer; the two models share all other modules."""
    changed = copy.copy(model)
    # A shallow copy would share the table of submodules.
    changed._modules = {**model._modules, "canonicalizer": canonicalizer}
    return changed


class _Plain(nn.Module):
    """A model without its canonicalizers."""

    def __init__(self, model: LoweredModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        model = self.model
        return predict(model.recipe, model.backbone, model.decoder, image, [], model.operations)


def export_plain(reference: DecModel, precision: Format = Format.FP32) -> onnx.ModelProto:
    """Return the reference without its canonicalizers as ONNX, with whose cost that of DEC is compared."""
    proto = _trace(_Plain(lower(reference, precision)), reference.recipe, [LOGITS])
    check_model(proto)
    return proto


def _trace(module: nn.Module, recipe: Recipe, outputs: list[str]) -> onnx.ModelProto:
    """Return a module of `image` as ONNX with a free batch, without paths of this machine."""
    _check_size(sum(p.numel() * p.element_size() for p in module.parameters()))
    size = recipe.image_size
    example = torch.zeros(_EXAMPLE_BATCH, 3, size, size)
    try:
        with _quiet():
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=outputs,
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"PyTorch {torch.__version__} cannot export this model: {error}") from error
    if program is None:
        raise ExportError(f"PyTorch {torch.__version__} cannot export this model: its exporter returned no program.")
    proto = program.model_proto
    _strip_traces(proto)
    proto.producer_name, proto.producer_version = "dec-export", version_of("dec-export") or ""
    proto.graph.name = recipe.name
    return proto


def save(proto: onnx.ModelProto, path: Path) -> None:
    """Write one self-contained ONNX file."""
    _check_size(proto.ByteSize())
    path.write_bytes(proto.SerializeToString())


def _check_size(size: int) -> None:
    if size > _MAX_BYTES:
        raise ExportError(
            f"The model takes {size} bytes as one ONNX file, more than the {_MAX_BYTES} that the format allows: "
            "choose a smaller backbone."
        )


def with_outputs(proto: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Return a copy of the model with the inner tensors of these names as further outputs; its solves are inlined.

    Raises ExportError when the model has no tensor of one of the names.
    """
    return ShowTensors(names).apply(proto)


def inner_names(proto: onnx.ModelProto) -> list[str]:
    """Return the inner tensors of the model that `dec_export.names` knows, in the order of their computation."""
    graph = inline(proto, keep_operators=True).graph if proto.functions else proto.graph
    return [name for node in graph.node for name in node.output if is_inner(name)]


def _hide_outputs(proto: onnx.ModelProto, names: list[str]) -> None:
    """Turn outputs into inner tensors that keep their names and shapes."""
    for output in [output for output in proto.graph.output if output.name in names]:
        proto.graph.value_info.append(output)
        proto.graph.output.remove(output)


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes from each node, because they hold source paths of the exporting machine."""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""
    for item in [*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output]:
        del item.metadata_props[:]
        item.doc_string = ""
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's progress lines and warnings from the user's terminal; errors are still raised."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "onnxscript"))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
