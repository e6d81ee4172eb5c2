"""Measure what each rewriting of the lowering saves: undo one at a time, export, and time all in ONNX Runtime.

    python scripts/bench_lowerings.py [--backbone deit_s] [--batch 1 8] [--threads 2] [--rounds 11]

The model is exported from its PyTorch modules, and not from the `dec` functions that `dec-export build` writes, so that
a module can be replaced; the two take the same time within 3 %. Every variant computes the same function, as the tests
of the lowering prove. The variants take turns. A gain is the variant's time over that of the model with all rewritings,
as the median over rounds; gains overlap, so they do not multiply.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dec_export.bench import machine
from dec_export.bench.timing import interleave, ratio, summarise
from dec_export.data.images import load_images
from dec_export.engines.onnxruntime import OnnxRuntimeEngine
from dec_export.lowering import block as blocks
from dec_export.lowering import warp as warps
from dec_export.lowering.block import LoweredBlock
from dec_export.lowering.model import LoweredStep, lower
from dec_export.onnx_export.tracing import export_plain, export_traced, save
from dec_export.recipe.model import Recipe
from dec_export.reference.canonicalizer import ResidualBlock
from dec_export.reference.model import create_reference, preprocessing_of
from dec_export.reference.warp import Phi

# What undoes a rewriting: it enters patches into a stack, which ends them.
Patches = Callable[[contextlib.ExitStack], None]


def aligned_corners(stack: contextlib.ExitStack) -> None:
    """Sample as the reference does, with border padding and aligned corners."""
    create = warps.LoweredGrid.__init__

    def init(self: warps.LoweredGrid, *arguments: object) -> None:
        create(self, *arguments)  # type: ignore[arg-type]
        limit_x, limit_y = self.limits
        self.accumulate_x, self.accumulate_y = self.accumulate_x / limit_x, self.accumulate_y / limit_y
        self.limits = (1.0, 1.0)

    def sample(image: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)

    stack.enter_context(mock.patch.object(warps.LoweredGrid, "__init__", init))
    stack.enter_context(mock.patch.object(warps, "sample", sample))


def sampled_identity(stack: contextlib.ExitStack) -> None:
    """Sample the image at the first evaluation as well, where the warp is the identity."""

    def at_identity(self: LoweredStep, image: Tensor) -> Phi:
        result: Phi = self(Phi.ones(image.shape[0], self.coarse_resolution, image), image)
        return result

    stack.enter_context(mock.patch.object(LoweredStep, "at_identity", at_identity))


def with_forward(forward: Callable[[LoweredBlock, Tensor], Tensor]) -> Patches:
    """Replace the forward pass of every block."""

    def patches(stack: contextlib.ExitStack) -> None:
        stack.enter_context(mock.patch.object(LoweredBlock, "forward", forward))

    return patches


def _statistics(self: LoweredBlock, y: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of maps (B, C, h, w), and the factor by which the norm multiplies them, (B, C, 1, 1) each."""
    mean = blocks.spatial_mean(y)
    variance = (blocks.spatial_mean(y * y) - mean * mean).clamp(min=0)
    return mean, self.scale / torch.sqrt(variance + self.eps)


def mean_of_the_map(self: LoweredBlock, padded: Tensor) -> Tensor:
    """Compute the mean from the convolution's output instead of its input."""
    y = F.conv2d(padded, self.weight)
    mean, factor = _statistics(self, y)
    return blocks.softplus(self.pool(y) * factor + (self.shift - mean * factor), subtracted=self.offset)


def pooling_last(self: LoweredBlock, padded: Tensor) -> Tensor:
    """Apply norm and softplus to the whole map, and pool afterwards."""
    y = F.conv2d(padded, self.weight)
    mean, factor = _statistics(self, y)
    pooled: Tensor = self.pool(blocks.softplus(y * factor + (self.shift - mean * factor), subtracted=self.offset))
    return pooled


def softplus_operator(stack: contextlib.ExitStack) -> None:
    """Compute softplus with the ONNX operator Softplus."""
    stack.enter_context(
        mock.patch.object(blocks, "softplus", lambda x, subtracted=0.0: F.softplus(x, threshold=1e9) - subtracted)
    )


def means_by_reduction(stack: contextlib.ExitStack) -> None:
    """Compute means with ReduceMean, for which ONNX Runtime leaves the blocked layout of its convolutions."""

    def spatial_mean(maps: Tensor) -> Tensor:
        return maps.mean(dim=(-2, -1), keepdim=True)

    stack.enter_context(mock.patch.object(blocks, "spatial_mean", spatial_mean))


def separate_projection(stack: contextlib.ExitStack) -> None:
    """Compute the 1x1 projection with a convolution of its own."""
    create = LoweredBlock.__init__

    def init(self: LoweredBlock, block: ResidualBlock, size: tuple[int, int]) -> None:
        create(self, block, size)
        sign = torch.where(block.norm1.weight.detach() < 0, -1.0, 1.0).double()[:, None, None, None]
        projection = block.projection.weight if isinstance(block.projection, torch.nn.Conv2d) else None
        assert projection is not None, "This variant needs blocks whose number of channels changes."
        self.register_buffer("conv_weight", block.conv1.weight.detach().double() * sign)
        self.register_buffer("projection", projection.detach().double() * sign)

    def forward(self: LoweredBlock, padded: Tensor) -> Tensor:
        inner = padded[:, :, self.padding : -self.padding, self.padding : -self.padding]
        y = F.conv2d(padded, self.conv_weight) + F.conv2d(inner, self.projection)  # type: ignore[arg-type]
        taps = self.boxes_y @ padded @ self.boxes_x
        mean = (taps.flatten(1) @ self.tap_weight)[:, :, None, None]
        variance = (blocks.spatial_mean(y * y) - mean * mean).clamp(min=0)
        factor = self.scale / torch.sqrt(variance + self.eps)
        return blocks.softplus(self.pool(y) * factor + (self.shift - mean * factor), subtracted=self.offset)

    stack.enter_context(mock.patch.object(LoweredBlock, "__init__", init))
    stack.enter_context(mock.patch.object(LoweredBlock, "forward", forward))


def centring_everywhere(stack: contextlib.ExitStack) -> None:
    """Centre the input of every block at every evaluation."""
    pad = LoweredBlock.pad

    def centred_pad(self: LoweredBlock, x: Tensor) -> Tensor:
        return pad(self, blocks.centred(x))

    def centred_warp(self: LoweredStep, phi: Phi, image: Tensor) -> Phi:
        return self._score(blocks.centred(self.warp(phi, image)))

    stack.enter_context(mock.patch.object(LoweredBlock, "pad", centred_pad))
    stack.enter_context(mock.patch.object(LoweredStep, "forward", centred_warp))


VARIANTS: dict[str, Patches] = {
    "as exported": lambda _: None,
    "GridSample with aligned corners": aligned_corners,
    "identity warp sampled": sampled_identity,
    "projection as its own convolution": separate_projection,
    "mean read from the map": with_forward(mean_of_the_map),
    "means by ReduceMean": means_by_reduction,
    "centring at every block": centring_everywhere,
    "Softplus operator": softplus_operator,
    "norm and softplus before pooling": with_forward(pooling_last),
}


@contextlib.contextmanager
def undone(patches: Patches) -> Iterator[None]:
    """A context in which one rewriting of the lowering is undone."""
    with contextlib.ExitStack() as stack:
        patches(stack)
        yield


def export_variants(recipe: Recipe, threads: int) -> dict[str, OnnxRuntimeEngine]:
    """An engine of every variant, and of the backbone without DEC."""
    reference = create_reference(recipe)
    engines = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, patches) in enumerate(VARIANTS.items()):
            path = Path(folder) / f"{index}.onnx"
            with undone(patches):
                save(export_traced(lower(reference)), path)
            engines[name] = OnnxRuntimeEngine(path, threads=threads)
        save(export_plain(reference), Path(folder) / "plain.onnx")
        engines["backbone without DEC"] = OnnxRuntimeEngine(Path(folder) / "plain.onnx", threads=threads)
    return engines


def print_times(recipe: Recipe, engines: Mapping[str, OnnxRuntimeEngine], batch: int, rounds: int) -> None:
    """Time all engines in turns with one batch, and print their medians and gains."""
    array = load_images(preprocessing_of(recipe), batch).array
    images = np.ascontiguousarray(np.resize(array, (batch, *array.shape[1:])))
    seconds = interleave({name: partial(engine, images) for name, engine in engines.items()}, rounds)
    print(f"batch {batch}")
    for name, values in seconds.items():
        median = summarise(values).median * 1e3
        print(f"  {name:36} {median:8.1f} ms   x {ratio(values, seconds['as exported']):.2f}")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deit_s", help="name of a shipped recipe (default: %(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="numbers of images (default: 1 8)")
    parser.add_argument("--threads", type=int, default=2, help="threads of ONNX Runtime (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=11, help="number of turns of each variant (default: %(default)s)")
    options = parser.parse_args()
    recipe = Recipe.named(options.backbone)
    engines = export_variants(recipe, options.threads)
    print(f"DEC {recipe.name}, {options.threads} threads, {options.rounds} rounds, {machine.describe().processor}")
    for batch in options.batch:
        print_times(recipe, engines, batch, options.rounds)


if __name__ == "__main__":
    main()
