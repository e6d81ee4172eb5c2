"""The reading of `preprocessor_config.json`, in which transformers stores the settings of an image processor.

Source: the image processors of transformers 4.44.2 (ViT, DeiT, BEiT, BiT, ConvNeXT). The published program calls them
on values from 0 to 1 without rescaling.
"""

from __future__ import annotations

import json
from pathlib import Path

from dec_export.errors import RecipeError
from dec_export.recipe.reading import Document

_MAX_BYTES = 1 << 16
# Pillow's numbers of the filters.
_FILTERS = {2: "bilinear", 3: "bicubic"}
_READ = {
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "crop_pct",
    "do_normalize",
    "image_mean",
    "image_std",
}
# What the published program overrides, or what only names the class or converts other kinds of images.
_IGNORED = {
    "do_rescale",
    "rescale_factor",
    "do_convert_rgb",
    "do_reduce_labels",
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "_valid_processor_keys",
}
# From this shorter side on, ConvNeXT's processor resizes both sides and crops nothing.
_CONVNEXT_WITHOUT_CROP = 384


def read_processor(path: Path, image_size: int, *, antialias: bool) -> Document:
    """Return the section `preparation` of a recipe, not yet checked, for images of `image_size` pixels.

    antialias: whether the published program resizes with antialiasing.
    Raises RecipeError when the file cannot be read, or holds settings that no preparation has.
    """
    settings = _read(path)
    if unknown := sorted(set(settings) - _READ - _IGNORED):
        raise _refused(path, f"it has the unknown field '{unknown[0][:100]}'")
    resize, crop = _sizes(settings, image_size, path)
    resample = settings.get("resample", 2)
    if not isinstance(resample, int) or resample not in _FILTERS:
        raise _refused(path, f"resample must be 2 (bilinear) or 3 (bicubic), found {resample!r}")
    constants = {"mean": [0.0] * 3, "std": [1.0] * 3}
    if _flag(settings, "do_normalize", True, path):
        constants = {"mean": _three(settings, "image_mean", path), "std": _three(settings, "image_std", path)}
    return {"resize": resize, "filter": _FILTERS[resample], "antialias": antialias, "crop": crop, **constants}


def _read(path: Path) -> Document:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _refused(path, f"it is larger than {_MAX_BYTES} bytes")
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"Cannot read the image processor '{path}': {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise _refused(path, "it is not a JSON file") from error
    if not isinstance(settings, dict):
        raise _refused(path, "it holds no mapping")
    return settings


def _refused(path: Path, reason: str) -> RecipeError:
    return RecipeError(f"'{path}' is no preprocessor_config.json that can be prepared in a graph: {reason}.")


def _sizes(settings: Document, image_size: int, path: Path) -> tuple[int, int | None]:
    """Return the sides to which square images are resized and cropped; None crops nothing."""
    if "crop_pct" in settings and _flag(settings, "do_resize", True, path):
        return _convnext(settings, path)
    resize = _side(settings, "size", path) if _flag(settings, "do_resize", True, path) else image_size
    crops = _flag(settings, "do_center_crop", "crop_size" in settings, path)
    crop = _side(settings, "crop_size", path) if crops else None
    if crop is not None and crop > resize:
        raise _refused(path, f"it crops {crop} pixels of images of {resize}")
    return resize, None if crop == resize else crop


def _convnext(settings: Document, path: Path) -> tuple[int, int | None]:
    side, share = _side(settings, "size", path), settings["crop_pct"]
    if side >= _CONVNEXT_WITHOUT_CROP:
        return side, None
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0.1 <= share <= 1:
        raise _refused(path, f"crop_pct must be a number from 0.1 to 1, found {share!r}")
    resize = int(side / share)
    return resize, None if resize == side else side


def _side(settings: Document, field: str, path: Path) -> int:
    """Return the side of a square: a number, {"height", "width"} of equal numbers, or {"shortest_edge"}."""
    found = settings.get(field)
    sides = list(found.values()) if isinstance(found, dict) else [found]
    keys = set(found) if isinstance(found, dict) else {"shortest_edge"}
    is_square = keys in ({"shortest_edge"}, {"height", "width"}) and all(side == sides[0] for side in sides)
    if not is_square or not isinstance(sides[0], int) or isinstance(sides[0], bool) or not 1 <= sides[0] <= 4096:
        raise _refused(path, f"{field} must be the side of a square of at most 4096 pixels, found {str(found)[:100]!r}")
    return sides[0]


def _flag(settings: Document, field: str, default: bool, path: Path) -> bool:
    found = settings.get(field, default)
    if not isinstance(found, bool):
        raise _refused(path, f"{field} must be true or false, found {str(found)[:100]!r}")
    return found


def _three(settings: Document, field: str, path: Path) -> list[float]:
    found = settings.get(field)
    numbers = isinstance(found, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in found)
    if not isinstance(found, list) or not numbers or len(found) != 3:
        raise _refused(path, f"{field} must be three numbers, found {str(found)[:100]!r}")
    return [float(value) for value in found]
