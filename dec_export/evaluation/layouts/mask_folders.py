"""A folder of images beside a folder of masks: `images/NAME.jpg` and `masks/NAME.png`, or those of Pascal VOC.

A mask is a PNG whose pixels are the numbers of classes: the indices of a palette, or grey values. In VOC's layout only
the images that have a mask are taken, and the value 255 does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from dec_export.errors import DataError
from dec_export.evaluation.layouts.base import DataLayout, DataOptions
from dec_export.evaluation.layouts.files import folders_in, images_below, images_in, name_below
from dec_export.evaluation.samples import DataSet, FileSource, Sample

_IMAGES = ("images", "image", "imgs", "img", "jpegimages")
_MASKS = ("masks", "mask", "segmentationclassraw", "segmentationclass", "labels", "label", "annotations", "annotation")
_VOC = ("segmentationclassraw", "segmentationclass")
_VOC_IGNORED = 255
# What the names of masks may add to those of their images.
_ENDINGS = ("_mask", "_masks", "_seg", "_segmentation", "_label", "_labels", "_gt")


def _recognises(path: Path) -> bool:
    return path.is_dir() and not images_in(path) and _pair(path) is not None


def _pair(path: Path) -> tuple[Path, Path] | None:
    """Return the folders of the images and of the masks."""
    folders = {folder.name.lower(): folder for folder in folders_in(path)}
    images = next((folders[name] for name in _IMAGES if name in folders), None)
    masks = next((folders[name] for name in _MASKS if name in folders), None)
    return None if images is None or masks is None else (images, masks)


def _read(path: Path, options: DataOptions) -> DataSet:
    pair = _pair(path)
    if pair is None:
        raise DataError(f"'{path}' has no folders of images and masks: expected the names images and masks.")
    images, masks = (_by_stem(folder) for folder in pair)
    for folder, found in zip(pair, (images, masks), strict=True):
        if not found:
            raise DataError(f"The folder '{folder}' holds no images: expected JPEG or PNG files.")
    is_voc = pair[1].name.lower() in _VOC
    partners = _partners(images, masks)
    _check_partners(images, masks, partners, all_images=not is_voc)
    ignored = _VOC_IGNORED if is_voc and options.ignored is None else options.ignored
    samples = []
    for stem, mask in partners.items():
        _check_header(images[stem], mask)
        samples.append(Sample(name_below(path, images[stem]), FileSource(images[stem]), mask=FileSource(mask)))
    return DataSet(samples, MASK_FOLDERS.name, ignored=ignored)


def _by_stem(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by their names without the suffix."""
    found: dict[str, Path] = {}
    for image in images_below(folder):
        stem = image.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise DataError(f"'{found[stem]}' and '{image}' have one name, so partners are not clear: rename one.")
        found[stem] = image
    return found


def _partners(images: Mapping[str, Path], masks: Mapping[str, Path]) -> dict[str, Path]:
    """Return the masks by the names of their images, in the order of the images."""
    found = {}
    for stem in images:
        names = (stem, *(stem + ending for ending in _ENDINGS))
        mask = next((masks[name] for name in names if name in masks), None)
        if mask is not None:
            found[stem] = mask
    return found


def _check_partners(
    images: Mapping[str, Path], masks: Mapping[str, Path], partners: Mapping[str, Path], *, all_images: bool
) -> None:
    used = set(partners.values())
    alone = [mask for mask in masks.values() if mask not in used]
    if alone:
        raise DataError(_sentence("mask", "image", alone))
    without = [image for stem, image in images.items() if stem not in partners]
    if without and all_images:
        raise DataError(_sentence("image", "mask", without))


def _sentence(kind: str, partner: str, paths: Sequence[Path]) -> str:
    more = f" (nor have {len(paths) - 1} others)" if len(paths) > 1 else ""
    return f"The {kind} '{paths[0]}' has no {partner} of its name{more}: add the {partner}, or remove the {kind}."


def _check_header(image: Path, mask: Path) -> None:
    """Raise DataError when the headers of the files say that they do not fit; files without a header come later."""
    facts = _header(mask)
    if facts is None:
        return
    mode, size = facts
    if mode not in ("P", "L"):
        raise DataError(
            f"The mask '{mask}' has pixels of mode {mode}, expected a palette or grey PNG whose values are classes: "
            "convert it."
        )
    of_image = _header(image)
    if of_image is not None and of_image[1] != size:
        width, height = of_image[1]
        raise DataError(
            f"The mask '{mask}' has {size[0]} x {size[1]} pixels, expected those of its image, {width} x {height}: "
            "give the mask of this image."
        )


def _header(path: Path) -> tuple[str, tuple[int, int]] | None:
    """Return the mode and the size of an image, or None if its file does not say them."""
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            return image.mode, image.size
    # Damaged bytes lead Pillow's decoders to errors of many classes; the image is then counted as damaged later.
    except Exception:
        return None


MASK_FOLDERS = DataLayout("mask-folders", "images/NAME.jpg and masks/NAME.png", _recognises, _read)
