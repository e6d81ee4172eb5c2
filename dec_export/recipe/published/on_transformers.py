"""The program for digits and dense prediction, `train_mnist.py` with `config_1.yaml`: models of transformers."""

from __future__ import annotations

import re
import reprlib

from dec_export.errors import RecipeError
from dec_export.recipe.published.base import (
    ANTIALIAS_NOTE,
    NEVER,
    Entry,
    ImportOptions,
    Program,
    Translation,
    deep_equilibrium,
    discrete,
)
from dec_export.recipe.published.models import MODELS, TOKENS_WITHOUT_RESIZED_EMBEDDING, PublishedModel
from dec_export.recipe.published.processor import read_processor
from dec_export.recipe.reading import Document

# The values of which the program makes the warps of its classical canonicalizer.
_DISCRETE_VALUES = [1, 0.5]
_INPUT = {"crop_pct": 1.0, "interpolation": "bilinear", "mean": [0.0] * 3, "std": [1.0] * 3, "squash": True}
_NOTES = {
    "dino": "As published, the DINOv2 classifier fails, because its class overwrites the model's configuration; the "
    "recipe describes what was meant.",
    "shifted": "The published dense DeiT reads its tokens shifted by one (patches_shifted_by_one), and its weights "
    "depend on it; the recipe reproduces this.",
    "stays_warped": "The published dense ResNet never undoes the warps of its stages (features_stay_warped), and its "
    "weights depend on it; the recipe reproduces this.",
    "deform": "The published program ignores deform_resolution for this model, and so does the recipe.",
}


def _translate(entry: Entry, options: ImportOptions) -> Translation:
    model = _model(entry, options)
    classifies = _task(entry) == "classification"
    size = _image_size(entry, options)
    backbone = model.document(pretrained=entry.flag("use_pretrained", True), classifies=classifies)
    backbone["num_classes"] = entry.value("num_classes")
    backbone["preparation"] = _preparation(options, model, size)
    backbone["image_size"] = _prepared_size(entry, model, backbone)
    warps, notes = _warps(entry, model, classifies)
    if warps.get("deform_resolution") is not None and -1 in warps["unaugment_layer_id"] and backbone["family"] == "vit":
        backbone |= {"family": "custom", "insertion": TOKENS_WITHOUT_RESIZED_EMBEDDING}
    document = {
        "name": re.sub(r"[^A-Za-z0-9_.-]+", "_", entry.name).strip("_.-") or "published",
        "task": entry.value("task", "classification"),
        "backbone": backbone,
        "input": {"image_size": size, **_INPUT},
        "head": None if classifies else _head(entry, model),
        **warps,
        "evaluation": {"strength": entry.value("warping_strength", 0.25)},
    }
    return Translation(document, tuple(notes))


def _task(entry: Entry) -> str:
    task = entry.value("task", "classification")
    if task not in ("classification", "segmentation"):
        raise RecipeError(
            f"'{entry.name}' in '{entry.file}': task must be classification or segmentation, found "
            f"{reprlib.repr(task)}."
        )
    return str(task)


def _model(entry: Entry, options: ImportOptions) -> PublishedModel:
    if options.backbone is not None:
        raise RecipeError(
            f"'{entry.file}' is of the published program on transformers, which has models of its own: leave "
            "--backbone out."
        )
    name = entry.value("model")
    if not isinstance(name, str) or name not in MODELS:
        raise RecipeError(
            f"'{entry.name}' in '{entry.file}' has model {reprlib.repr(name)}, of which the published program has no "
            f"class: choose a configuration whose model is one of {', '.join(MODELS)}."
        )
    return MODELS[name]


def _image_size(entry: Entry, options: ImportOptions) -> int:
    """Return the height and width of the program's images: digits stand side by side, or on a diagonal."""
    if options.image_size is not None:
        return options.image_size
    size = entry.count("image_size")
    return size * entry.count("n_digits") if entry.value("data_set") == "mnist" else size


def _preparation(options: ImportOptions, model: PublishedModel, size: int) -> Document:
    if options.image_processor is None:
        return dict(model.preparation)
    return read_processor(options.image_processor, size, antialias=bool(model.preparation["antialias"]))


def _prepared_size(entry: Entry, model: PublishedModel, backbone: Document) -> object:
    preparation = backbone["preparation"]
    size = preparation["crop"] or preparation["resize"]
    if size != backbone["image_size"] and not model.image_sizes:
        raise RecipeError(
            f"'{entry.name}' in '{entry.file}': the model reads images of {backbone['image_size']} pixels, and the "
            f"image processor makes {size}: give the preprocessor_config.json of the model that was trained."
        )
    return size


def _warps(entry: Entry, model: PublishedModel, classifies: bool) -> tuple[Document, list[str]]:
    """Return the canonicalizer, the places and the defects, and notes on what the configuration does not show."""
    shifted = ["patches_shifted_by_one"] if model.shifted and not classifies else []
    notes = [_NOTES["shifted"]] if shifted else []
    if classifies and entry.value("model") == "dino":
        notes.append(_NOTES["dino"])
    document: Document = {"published_defects": shifted}
    if entry.flag("do_adaptation"):
        adapted, more = _adapted(entry, model, classifies)
        return {**document, **adapted, "published_defects": [*shifted, *adapted["published_defects"]]}, notes + more
    if entry.flag("do_cannonicalization"):
        canonicalizer = discrete(entry, "cannon", "kernel_sizes", _DISCRETE_VALUES)
        places = {"augment_layer_id": [-1], "unaugment_layer_id": NEVER if classifies else [-1]}
        return {**document, "canonicalizer": canonicalizer, **places}, notes
    return {**document, "canonicalizer": None, "augment_layer_id": NEVER, "unaugment_layer_id": NEVER}, notes


def _adapted(entry: Entry, model: PublishedModel, classifies: bool) -> tuple[Document, list[str]]:
    canonicalizer = deep_equilibrium(entry)
    first = 0 if entry.flag("skip_input_augmentation") else -1
    places = list(range(first, first + entry.count("num_phi_layers")))
    undoes = model.undoes or not classifies
    if first == -1 and undoes and not model.unwarps_input:
        raise RecipeError(
            f"'{entry.name}' in '{entry.file}' has skip_input_augmentation false, with which the published program "
            f"fails for {entry.value('model')}, so that no checkpoint of it exists: set it to true."
        )
    notes, deform = [ANTIALIAS_NOTE], entry.value("deform_resolution")
    if deform is not None and not model.resizes_features:
        notes, deform = [*notes, _NOTES["deform"]], None
    stays = model.stays_warped and not classifies
    if stays:
        notes.append(_NOTES["stays_warped"])
    undone = [place for place in places if place == -1] if stays else places
    return {
        "canonicalizer": canonicalizer,
        "augment_layer_id": places,
        "unaugment_layer_id": (undone or NEVER) if undoes else NEVER,
        "deform_resolution": deform,
        "published_defects": ["features_stay_warped"] if stays else [],
    }, notes


def _head(entry: Entry, model: PublishedModel) -> Document:
    kind = entry.value("segmentation_head")
    if kind == "linear":
        return {"kind": kind}
    channels = entry.value("dpt_feature_channels")
    if kind != "dpt" or not isinstance(channels, list):
        raise RecipeError(
            f"'{entry.name}' in '{entry.file}': expected segmentation_head linear, or dpt with a list "
            f"dpt_feature_channels, found {reprlib.repr(kind)} and {reprlib.repr(channels)}."
        )
    first, tapped = model.taps
    taps = list(range(first, first + len(channels)))
    return {"kind": kind, "taps": taps, "tapped": tapped, "width": entry.value("dpt_fusion_hidden_size")}


ON_TRANSFORMERS = Program("model", frozenset({"model", "do_adaptation"}), _translate)
