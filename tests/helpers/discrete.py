"""A small recipe with the classical canonicalizer."""

from __future__ import annotations

from dec_export.recipe.canonicalizers import DiscreteCanonicalizerRecipe
from dec_export.recipe.model import BackboneRecipe, HeadRecipe, Recipe

_BACKBONES: dict[str, tuple[str, int, dict[str, int]]] = {
    "vit": ("test_vit", 160, {}),
    "beit": ("beit_base_patch16_224", 224, {"embed_dim": 24, "depth": 2, "num_heads": 2}),
}


def discrete_recipe(*, limit: int = 5, family: str = "vit", segmentation: bool = False) -> Recipe:
    """Return a recipe of a small backbone under the classical canonicalizer, as the published `cannon_*` entries."""
    timm, size, sizes = _BACKBONES[family]
    return Recipe(
        name="cannon",
        task="segmentation" if segmentation else "classification",
        backbone=BackboneRecipe(timm=timm, family=family, image_size=size, num_classes=10, timm_args=sizes),
        canonicalizer=DiscreteCanonicalizerRecipe(kind="discrete", values=(0.8, 1.0), limit=limit),
        head=HeadRecipe(kind="linear") if segmentation else None,
        augment_layer_id=(-1,),
        unaugment_layer_id=(-1,) if segmentation else (-100,),
    )
