"""The engine that runs the reference in eager PyTorch on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dec_export.engines.base import EngineDetails, RunOptions, Shown, check_image
from dec_export.engines.spec import Availability, EngineSpec, works
from dec_export.gpu import Gpu
from dec_export.names import LOGITS, feature_name, map_name, phi_names, solver_tensor

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from dec_export.bundle.store import Bundle
    from dec_export.reference.model import DecModel
    from dec_export.reference.trace import Trace
    from dec_export.reference.warp import Phi


@dataclass(frozen=True)
class TorchDetails(EngineDetails):
    """The details of PyTorch.

    dtype: PyTorch's name of the parameters' dtype. threads: the number of threads of the whole process.
    """

    dtype: str
    threads: int


class TorchEngine:
    """An engine that runs a DecModel in the dtype of its parameters.

    expose_phi: whether the solved phis are additional outputs. tap: the block or stage whose feature map is an
    additional output, or None. inner: whether all tensors that `dec_export.names` names are additional outputs.
    threads: the number of threads of the whole process, because PyTorch has no other setting. Raises RecipeError when
    the model has no such block.
    """

    name = "torch"
    smallest_batch = 1
    largest_batch: int | None = None

    def __init__(
        self,
        model: DecModel,
        *,
        expose_phi: bool = False,
        tap: int | None = None,
        inner: bool = False,
        threads: int | None = None,
    ) -> None:
        import torch

        from dec_export.reference.backbones.stages import check_tap

        if tap is not None:
            check_tap(model.recipe, model.backbone, tap)
        self._model = model.eval()
        self.exposes_phi = expose_phi or inner
        self._inner, self._tap = inner, tap
        self._dtype = model.input_dtype
        if threads is not None:
            torch.set_num_threads(threads)

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        return self.at(image)

    def at(self, image: NDArray[np.float32], phis: list[Phi] | None = None) -> dict[str, NDArray[np.float32]]:
        """Return the outputs for images that are warped by `phis`; None means those that the canonicalizers find."""
        import torch

        from dec_export.reference.trace import trace

        check_image(image, self._model.recipe.image_size)
        with torch.inference_mode():
            tensor = torch.from_numpy(image).to(self._dtype)
            if not self._inner and self._tap is None and phis is None:
                return self._named(*self._model(tensor))
            traced = trace(self._model, tensor, phis and [_cast(phi, self._dtype) for phi in phis])
            outputs = self._named(*traced.output) | self._map(traced)
            return outputs | _inner(traced) if self._inner else outputs

    def _named(self, logits: Tensor, phis: list[Phi]) -> dict[str, NDArray[np.float32]]:
        outputs = {LOGITS: logits.numpy()}
        if self.exposes_phi:
            axes = [axis.numpy() for phi in phis for axis in phi]
            outputs |= dict(zip(phi_names(len(phis)), axes, strict=True))
        return outputs

    def _map(self, traced: Trace) -> dict[str, NDArray[np.float32]]:
        if self._tap is None:
            return {}
        from dec_export.reference.backbones.maps import tapped_map
        from dec_export.reference.finite import nan_unless

        recipe, backbone, features = self._model.recipe.backbone, self._model.backbone, traced.features[self._tap]
        shown = nan_unless(traced.finite, tapped_map(recipe, backbone, self._tap, features, self._dtype))
        return {map_name(self._tap): shown.numpy()}

    def describe(self) -> TorchDetails:
        import torch

        dtype = str(self._dtype).removeprefix("torch.")
        return TorchDetails("PyTorch", torch.__version__, "cpu", dtype, torch.get_num_threads())


def _cast(phi: Phi, dtype: torch.dtype) -> Phi:
    return phi._replace(x=phi.x.to(dtype), y=phi.y.to(dtype))


def _inner(traced: Trace) -> dict[str, NDArray[Any]]:  # The dtype is that of the reference.
    """Return iterates and features by name. The solver's first iterates are left out, because no export has them."""
    import torch

    found: dict[str, Tensor] = {}
    for layer, solve in enumerate(traced.solves):
        shape = (-1, 2, *traced.output.phis[layer].x.shape[1:])
        for k, (iterate, image) in enumerate(zip(solve.iterates, solve.images, strict=True)):
            if k >= 2:
                found[solver_tensor(layer, "iterate", k)] = iterate.view(shape)
            found[solver_tensor(layer, "image", k)] = image.view(shape)
    found |= {feature_name(place): value for place, value in traced.features.items()}
    # NumPy has no bfloat16.
    return {name: (value.float() if value.dtype == torch.bfloat16 else value).numpy() for name, value in found.items()}


def _probe(_: Gpu | None) -> Availability:
    import torch

    return works(f"PyTorch {torch.__version__}, the reference itself, on the CPU")


def _load(bundle: Bundle, options: RunOptions, shown: Shown) -> TorchEngine:
    return TorchEngine(
        bundle.reference(), expose_phi=shown.phi, tap=bundle.tap, inner=shown.inner, threads=options.threads
    )


SPECS = (
    EngineSpec(
        name="torch",
        summary="the reference in PyTorch on the CPU",
        preference=50,
        needs_gpu=False,
        package="torch",
        probe=_probe,
        load=_load,
        # A proof of the reference adds nothing to the references of the proof, so `auto` never chooses this engine.
        automatic=False,
    ),
)
