"""How an image file becomes the model's input, and how the backbone's input is made from it inside the graph."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dec_export.recipe.base import Frozen, ImageSize

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Mean = tuple[_Finite, _Finite, _Finite]
Deviation = tuple[_Positive, _Positive, _Positive]


class InputRecipe(Frozen):
    """How an image file becomes the model's input; a null field is timm's for the backbone.

    image_size: the height and width of the model's input in pixels; null is the backbone's.
    crop_pct: the size divided by the side to which the image is resized before the centre is cropped.
    interpolation: the filter of the resize.
    mean, std: the mean and the standard deviation of R, G and B, for values in [0, 1]. A model whose input is raw has
    mean 0 and std 1.
    squash: whether both sides are resized instead of the shorter one.
    """

    image_size: ImageSize | None = None
    crop_pct: Annotated[float, Field(ge=0.1, le=1)] | None = None
    interpolation: Interpolation | None = None
    mean: Mean | None = None
    std: Deviation | None = None
    squash: bool | None = None


class PreparationRecipe(Frozen):
    """How the backbone's input is made from the model's input, inside the graph: resize, crop, normalise.

    resize: the height and width to which the model's input is resized.
    filter, antialias: the filter of the resize, and whether it is widened where the image shrinks. Without antialiasing
    "bicubic" has PyTorch's coefficient -0.75, with it Pillow's -0.5.
    crop: the height and width of the part that is kept, which is the backbone's image_size; null keeps everything.
    crop_at: where that part is: in the "center", or in the upper left "corner", as a convolution of patches leaves out
    the last rows and columns of an image that is not a whole number of patches.
    mean, std: the mean and the standard deviation of R, G and B, for values in the range of the model's input.
    """

    resize: ImageSize
    filter: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    crop: ImageSize | None = None
    crop_at: Literal["center", "corner"] = "center"
    mean: Mean = (0.0, 0.0, 0.0)
    std: Deviation = (1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _check(self) -> PreparationRecipe:
        if self.crop is not None and self.crop > self.resize:
            raise ValueError(f"the crop must be no larger than the resized image of {self.resize}, found {self.crop}")
        return self

    @property
    def size(self) -> int:
        """The height and width of the result in pixels."""
        return self.crop or self.resize
