"""The runs of self-supervised training, and the settings that they share.

Three runs take equally many steps of the same images and start from the same weights:

- *plain* sees two ordinary views of every image and has the invariance loss;
- *views* has the same loss, but sees geometric views of a share of each batch;
- *ser* sees what *views* sees, and has the equivariance loss on that share as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from dec_export.errors import DecExportError
from dec_export.recipe.model import Recipe

# The published share is 1 % of 2,048 images. With a batch of 64 that would be one image, which has no other to be
# contrasted with. This share is eight images.
SHARE = 0.125
# The first number of the seed of a run's random numbers is the settings' seed, the second one is this. The supervised
# runs have 0 and 1 here, and the probe has 3.
STREAM = 2


@dataclass(frozen=True)
class SerRun:
    """One training. share: the part of each batch with geometric views. weight: the weight of the equivariance loss."""

    name: str
    share: float = 0.0
    weight: float = 0.0


@dataclass(frozen=True)
class SerSettings:
    """What all runs share.

    batch: the number of images of a step, and each is seen twice. redundancy: weight of the off-diagonal correlations.
    temperature: that of the equivariance loss. rate: the highest learning rate. hidden, patch_hidden: widths of the
    projectors. probe_images: how many images the probe learns from. validation_images: how many its regularisation is
    chosen with. test_images: how many it is tested with. map_images: how many show the error of equivariance.
    """

    recipe: Recipe
    steps: int = 1600
    seed: int = 0
    batch: int = 64
    redundancy: float = 0.0051
    temperature: float = 0.4
    rate: float = 7e-4
    hidden: int = 512
    patch_hidden: int = 128
    save_every: int = 50
    validate_every: int = 400
    probe_images: int = 6000
    validation_images: int = 1000
    test_images: int = 4000
    map_images: int = 400

    def of_training(self) -> dict[str, object]:
        """The settings on which the weights depend, as plain values."""
        names = ("steps", "seed", "batch", "redundancy", "temperature", "rate", "hidden", "patch_hidden")
        return {"recipe": self.recipe.model_dump(mode="json"), **{name: getattr(self, name) for name in names}}


def plan(weight: float, share: float) -> tuple[SerRun, ...]:
    """Every run in order; with a weight of 0, the plain run alone.

    weight: that of the equivariance loss. share: the part of each batch with geometric views.
    DecExportError when the weight is negative, or the share is not in (0, 1].
    """
    if not weight >= 0 or not 0 < share <= 1:
        raise DecExportError(
            f"--ser takes a weight of 0 or more and --share a part of a batch above 0 and up to 1, but {weight} and "
            f"{share} were given."
        )
    return (SerRun("plain"), SerRun("views", share), SerRun("ser", share, weight))[: 3 if weight else 1]
