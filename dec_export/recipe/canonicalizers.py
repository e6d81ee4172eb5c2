"""The kinds of canonicalizers and their hyperparameters.

A new kind is a class of this module, its entry in `KINDS` and in `AnyCanonicalizer`, and its module in
`dec_export.reference`.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Final, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from dec_export.recipe.base import ChannelCount, Frozen, ImageSize, WindowSize

DEEP_EQUILIBRIUM: Final = "deep_equilibrium"
DISCRETE: Final = "discrete"
# The coarse resolution of the warps from which a discrete canonicalizer chooses, as in the published code.
DISCRETE_RESOLUTION = 8
# The columns of a candidate's steps that hold its values; all others are one.
_VARIED_COLUMNS = (2, 3, 4)


class CanonicalizerRecipe(Frozen):
    """The hyperparameters of deep equilibrium canonicalizers.

    kind: "deep_equilibrium".
    coarse_resolution: the resolution R of each canonicalizer; it is at least 4, because the smoothing reflects two of
    R-1 columns.
    channels, kernel_sizes, pool_rates: the sizes of the residual blocks; channels start at 3.
    image_size: the height and width in pixels to which the image is resized for the canonicalizers.
    antialias: whether this resize is antialiased. The published environment (torchvision 0.16.2) does not antialias
    tensors; torchvision does from 0.17 on. It matters when the model's input is larger than `image_size`.
    scale_image: whether the image is resized and normalised for the canonicalizers (`dem_image_scale` of the published
    code).
    max_iter: the number of iterates of the Anderson solver, including the first two, which are not mixed. With 1 or 2
    the solver mixes nothing, and the solution is one step from the identity, as in the published code.
    """

    kind: Literal["deep_equilibrium"] = DEEP_EQUILIBRIUM
    coarse_resolution: Annotated[tuple[Annotated[int, Field(strict=True, ge=4, le=64)], ...], Field(min_length=1)]
    channels: Annotated[tuple[ChannelCount, ...], Field(min_length=2)] = (3, 64, 128)
    kernel_sizes: tuple[WindowSize, ...] = (5, 3)
    pool_rates: tuple[WindowSize, ...] = (4, 2)
    image_size: ImageSize = 224
    antialias: bool = True
    scale_image: bool = True
    max_iter: Annotated[int, Field(strict=True, ge=1, le=64)] = 5

    @model_validator(mode="after")
    def _check(self) -> CanonicalizerRecipe:
        blocks = len(self.channels) - 1
        if self.channels[0] != 3:
            raise ValueError(f"channels must start at 3, the image's, found {self.channels[0]}")
        if len(self.kernel_sizes) != blocks or len(self.pool_rates) != blocks:
            raise ValueError(
                f"channels name {blocks} blocks, but there are {len(self.kernel_sizes)} kernel_sizes "
                f"and {len(self.pool_rates)} pool_rates"
            )
        if any(size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd, found {list(self.kernel_sizes)}")
        return self

    @property
    def iterates(self) -> bool:
        """Whether the solver mixes iterates; otherwise the solution is one step from the identity."""
        return self.max_iter > 2

    @property
    def steps(self) -> int:
        """The number of evaluations of f that one solve needs."""
        return self.max_iter + 1 if self.iterates else 1

    def check_size(self, size: int) -> None:
        """Raise ValueError unless the blocks can run on an input of `size` pixels."""
        for kernel_size, pool_rate in zip(self.kernel_sizes, self.pool_rates, strict=True):
            if kernel_size // 2 >= size:
                raise ValueError(
                    f"canonicalizer: a {kernel_size}x{kernel_size} convolution cannot reflect a map of {size} pixels"
                )
            size //= pool_rate
        if size < 2:  # InstanceNorm has no variance over a single pixel
            raise ValueError(f"canonicalizer: pool_rates {list(self.pool_rates)} leave fewer than 2 x 2 pixels")


class DiscreteCanonicalizerRecipe(Frozen):
    """The hyperparameters of the classical canonicalizer, which chooses one of a fixed list of warps.

    Each candidate warps the image; a small network scores the warped images, and the candidate of the largest score is
    the result. Source: the baseline "canonicalization" of the published implementation; docs/semantics.md, section 12.

    kind: "discrete".
    values: the values of which the steps of the candidates are made (`can_discrete_vals`).
    limit: the number of candidates along each axis, of which there are limit^2 in all (`unique_params_limit`).
    channels, kernel_sizes: the sizes of the convolutions; channels start at 3 and end at 1, the score.

    The chosen candidate warps the whole model: `augment_layer_id` of the recipe is [-1], the model's input, for every
    family of backbones. `unaugment_layer_id` is [-100] if the output has no place in the image, and [-1] if it has a
    value for each pixel, which unwarps the model's output. The warps are bilinear and have no `deform_resolution`.
    """

    kind: Literal["discrete"]
    values: Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=2, max_length=8)]
    limit: Annotated[int, Field(strict=True, ge=1, le=16)] = 5
    channels: Annotated[tuple[ChannelCount, ...], Field(min_length=2)] = (3, 8, 1)
    kernel_sizes: tuple[WindowSize, ...] = (3, 3)

    @model_validator(mode="after")
    def _check(self) -> DiscreteCanonicalizerRecipe:
        if self.channels[0] != 3 or self.channels[-1] != 1:
            raise ValueError(f"channels must start at 3, the image's, and end at 1, found {list(self.channels)}")
        if len(self.kernel_sizes) != len(self.channels) - 1:
            raise ValueError(
                f"channels name {len(self.channels) - 1} convolutions, but there are {len(self.kernel_sizes)} "
                "kernel_sizes"
            )
        if any(size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd, found {list(self.kernel_sizes)}")
        return self

    def check_size(self, size: int) -> None:
        """Raise ValueError unless the convolutions can run on an image of `size` pixels."""
        if size // 4 ** (len(self.kernel_sizes) - 1) < 1:
            raise ValueError(
                f"canonicalizer: {len(self.kernel_sizes)} convolutions with pools of 4 between them leave no pixel of "
                f"{size}"
            )

    def check_places(self, augmented: tuple[int, ...], unaugmented: tuple[int, ...], *, dense: bool) -> None:
        """Raise ValueError unless these are the places of a model whose output is `dense`, one value for each pixel."""
        expected = (-1,) if dense else (-100,)
        if augmented != (-1,) or unaugmented != expected:
            raise ValueError(
                f"a discrete canonicalizer warps the model's input{' and unwarps its output' if dense else ''}: "
                f"augment_layer_id must be [-1] and unaugment_layer_id {list(expected)}, found {list(augmented)} and "
                f"{list(unaugmented)}"
            )

    def axis_steps(self) -> list[tuple[tuple[float, ...], ...]]:
        """Return the steps of each candidate along one axis, `limit` maps of R rows and R-1 columns."""
        combinations = itertools.islice(itertools.product(self.values, repeat=DISCRETE_RESOLUTION), self.limit)
        return [tuple(_row(value) for value in rows) for rows in combinations]


def _row(value: float) -> tuple[float, ...]:
    return tuple(value if column in _VARIED_COLUMNS else 1.0 for column in range(DISCRETE_RESOLUTION - 1))


def _kind_of(value: object) -> str:
    """Return the kind of a canonicalizer or of its document, which need not state the deep equilibrium kind."""
    kind = value.get("kind", DEEP_EQUILIBRIUM) if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else DEEP_EQUILIBRIUM


AnyCanonicalizer = Annotated[
    Annotated[CanonicalizerRecipe, Tag(DEEP_EQUILIBRIUM)] | Annotated[DiscreteCanonicalizerRecipe, Tag(DISCRETE)],
    Discriminator(_kind_of),
]
KINDS = (DEEP_EQUILIBRIUM, DISCRETE)
