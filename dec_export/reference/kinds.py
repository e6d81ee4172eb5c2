"""The canonicalizer of each kind of recipe; a new kind is a module of this folder and a line of `_CREATORS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dec_export.recipe.canonicalizers import DiscreteCanonicalizerRecipe
from dec_export.recipe.model import CanonicalizerRecipe, Recipe
from dec_export.reference.canonicalizer import Canonicalizer, CanonicalizerModule, NoCanonicalizer
from dec_export.reference.discrete import DiscreteCanonicalizer

# Each creator takes the type of recipe that is its key, which the type of the table cannot say: hence Any.
_CREATORS: dict[type, Callable[[Any], CanonicalizerModule]] = {
    CanonicalizerRecipe: Canonicalizer,
    DiscreteCanonicalizerRecipe: DiscreteCanonicalizer,
}


def create_canonicalizer(recipe: Recipe) -> CanonicalizerModule:
    """Return the canonicalizer of a recipe with random weights; without one, a module that solves nothing."""
    found = recipe.canonicalizer
    return NoCanonicalizer() if found is None else _CREATORS[type(found)](found)
