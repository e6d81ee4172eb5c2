"""Families of timm models, each with the places at which its features can be warped.

A new family is one entry of `FAMILIES`. A recipe whose model belongs to no family states its own insertion
(`family: custom`).
Source of the places: the published implementation of arXiv 2508.14187; docs/semantics.md, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from dec_export.recipe.base import Frozen

Layout = Literal["tokens", "channels_last", "channels_first"]
ModulePath = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.\w+)*$", max_length=200)]
# The family of a model whose recipe has an insertion of its own.
CUSTOM = "custom"


class InsertionRecipe(Frozen):
    """The places at which a timm model's features can be warped, and their layout.

    stages: the path of the list of modules that are the places 0, 1, ..., as "blocks"; or the paths of the modules.
    ends: the paths of the modules whose outputs end the places 0, 1, ..., where these are not the stages themselves;
    null if they are.
    embedding: the path of the module whose output is unwarped at place -1; null when the model never visits place -1.
    layout: the layout of features, tokens (B, prefix + h w, C), channels_last (B, h, w, C) or channels_first
    (B, C, h, w).
    resizes_image, resizes_embedding: whether `deform_resolution` also applies to the image that is warped at place -1,
    and to the features that are unwarped there.
    """

    stages: ModulePath | tuple[ModulePath, ...]
    ends: tuple[ModulePath, ...] | None = None
    embedding: ModulePath | None
    layout: Layout
    resizes_image: bool = False
    resizes_embedding: bool = True

    @model_validator(mode="after")
    def _check(self) -> InsertionRecipe:
        if self.ends is not None and (isinstance(self.stages, str) or len(self.ends) != len(self.stages)):
            stages = "one path" if isinstance(self.stages, str) else f"{len(self.stages)} stages"
            raise ValueError(
                f"ends must name one module for each of the paths in stages, found {len(self.ends)} ends and {stages}"
            )
        return self


@dataclass(frozen=True)
class Family:
    """timm models that have their features at the same places.

    insertion: the places and the layout of their features.
    marks: attributes that every model of the family has, beside the modules that its insertion names.
    no_unwarp_of_embedding: why the published program cannot unwarp the embedding's output; empty if it can.
    """

    insertion: InsertionRecipe
    marks: tuple[str, ...] = ()
    no_unwarp_of_embedding: str = ""


FAMILIES: dict[str, Family] = {
    # This family has ViT, DeiT, DINOv2 and all other models that share their forward pass.
    "vit": Family(InsertionRecipe(stages="blocks", embedding="norm_pre", layout="tokens")),
    "beit": Family(InsertionRecipe(stages="blocks", embedding=None, layout="tokens"), marks=("rel_pos_bias",)),
    "swin": Family(
        InsertionRecipe(stages="layers", embedding="patch_embed", layout="channels_last", resizes_image=True),
        no_unwarp_of_embedding="the published program unwarps Swin's features (B, h, w, C) there as if they were a map "
        "(B, C, h, w), which no model can mean",
    ),
    "resnet": Family(
        InsertionRecipe(stages=("layer1", "layer2", "layer3", "layer4"), embedding="maxpool", layout="channels_first")
    ),
}


def _check_family(name: object) -> object:
    known = [*FAMILIES, CUSTOM]
    if name not in known:
        *first, last = [f"'{family}'" for family in known]
        raise PydanticCustomError("literal_error", f"Input should be {', '.join(first)} or {last}")
    return name


FamilyName = Annotated[str, BeforeValidator(_check_family)]
