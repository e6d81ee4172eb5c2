"""The types of a recipe, which describes the parts of a DEC model.

A recipe is a YAML file. The recipes that ship with dec-export are in `models/`. A configuration in the file of the
published training code (`adapter_config.yaml`) is read as well, by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, Field, model_validator

from dec_export.errors import RecipeError
from dec_export.recipe.base import ChannelCount, Frozen, ImageSize
from dec_export.recipe.canonicalizers import (
    DISCRETE_RESOLUTION,
    AnyCanonicalizer,
    DiscreteCanonicalizerRecipe,
)
from dec_export.recipe.canonicalizers import CanonicalizerRecipe as CanonicalizerRecipe
from dec_export.recipe.families import CUSTOM, FAMILIES, FamilyName, InsertionRecipe
from dec_export.recipe.preparation import InputRecipe, PreparationRecipe
from dec_export.recipe.published import is_published, published_translation
from dec_export.recipe.published.base import ImportOptions
from dec_export.recipe.reading import read_document, validate
from dec_export.recipe.relatives import config_file, is_config, relative_translation
from dec_export.recipe.shipped import shipped_document, shipped_name
from dec_export.tasks import task_named, task_names

# Other arguments of timm read files or use the network, which a recipe must not do.
TimmArgument = Literal["patch_size", "embed_dim", "depth", "num_heads", "reg_tokens", "use_rel_pos_bias"]
# The defects of the published dense models that their trained weights depend on; docs/semantics.md, section 6.
PublishedDefect = Literal["features_stay_warped", "patches_shifted_by_one"]
NEVER = -100


def _check_task_name(name: str) -> str:
    if name not in task_names():
        raise ValueError(f"the task must be one of {', '.join(task_names())}, found '{name}'")
    return name


TaskName = Annotated[str, AfterValidator(_check_task_name)]


def _check_place(place: int) -> int:
    if place < -1 and place != NEVER:
        raise ValueError(f"a place is -1 (the image), a block or stage from 0 on, or {NEVER} (never), found {place}")
    return place


Place = Annotated[int, Field(strict=True), AfterValidator(_check_place)]


class BackboneRecipe(Frozen):
    """The timm model to which the canonicalizer is added.

    timm: the name of the architecture, with the pretrained tag after a dot if there is one.
    family: the family of the model, which says where its features are; `vit` covers ViT, DeiT, DINOv2 and all models
    that share their forward pass. The family of any other model is `custom`, and its recipe has an `insertion`.
    image_size: the height and width of the model's input in pixels.
    num_classes: the number of classes of the logits.
    insertion: the places of the features of a `custom` model; null for a model of a family.
    timm_args: sizes and parts that differ from those of timm's architecture, for a model that was trained with others.
    layer_norm_eps: the epsilon of every layer norm; null is timm's. The vision transformers of the library
    transformers have 1e-12.
    readout: what the classifier reads: "timm" is the architecture's own pooling, "token_and_mean" is the class token
    beside the mean of the patch tokens, as DINOv2 classifies in transformers.
    preparation: how the backbone's input is made from the model's input inside the graph; null if they are the same.
    cls_insert_layer: the block before which the class token joins the patch tokens (SER, arXiv 2603.06693); 0 is the
    usual place, and null does not change timm's model.
    position_embedding: "learned"; "sincos2d", which is fixed as in MoCo v3; or "rotary_table": the sines and cosines by
    which attention turns the queries and keys of each patch are weights of the model instead of being computed.
    last_blocks: the number of last blocks whose class tokens the head reads (linear evaluation).
    avgpool_patchtokens: whether the head also reads the mean of the last block's patch tokens (linear evaluation).
    tap_norm: whether the map after the last block without a class token is shown after SER's `norm_equiv`, whose
    weights the checkpoint must hold.
    """

    timm: Annotated[str, Field(min_length=1)]
    family: FamilyName
    image_size: ImageSize = 224
    num_classes: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 1000
    insertion: InsertionRecipe | None = None
    timm_args: dict[TimmArgument, ChannelCount | bool] = Field(default_factory=dict)
    layer_norm_eps: Annotated[float, Field(gt=0, le=1e-2)] | None = None
    readout: Literal["timm", "token_and_mean"] = "timm"
    preparation: PreparationRecipe | None = None
    cls_insert_layer: Annotated[int, Field(strict=True, ge=0)] | None = None
    position_embedding: Literal["learned", "sincos2d", "rotary_table"] = "learned"
    last_blocks: Annotated[int, Field(strict=True, ge=1, le=64)] = 1
    avgpool_patchtokens: Annotated[bool, Field(strict=True)] = False
    tap_norm: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _check(self) -> BackboneRecipe:
        late = self.cls_insert_layer is not None
        if late and self.family != "vit":
            raise ValueError(f"cls_insert_layer goes with family 'vit' and with no other, found family '{self.family}'")
        if not late and (self.position_embedding == "sincos2d" or self.last_blocks != 1):
            raise ValueError("position_embedding and last_blocks go with cls_insert_layer; set it, to 0 at least")
        if late and self.position_embedding == "rotary_table":
            raise ValueError("a model with a rotary_table has its class token from the start: drop cls_insert_layer")
        for name, value in self.timm_args.items():
            if isinstance(value, bool) != (name == "use_rel_pos_bias"):
                wanted = "true or false" if name == "use_rel_pos_bias" else "a whole number"
                raise ValueError(f"timm_args.{name} must be {wanted}, found {value}")
        self._check_linear_evaluation()
        if (self.family == CUSTOM) != (self.insertion is not None):
            raise ValueError(f"insertion goes with family '{CUSTOM}' and with no other, found family '{self.family}'")
        return self

    def _check_linear_evaluation(self) -> None:
        if self.avgpool_patchtokens and self.cls_insert_layer is None:
            raise ValueError("avgpool_patchtokens goes with cls_insert_layer; set it, to 0 at least")
        if self.avgpool_patchtokens and self.last_blocks != 1:
            raise ValueError(
                "avgpool_patchtokens goes with last_blocks 1, because the published linear evaluation pairs the "
                f"channels of one class token with those of the mean, found last_blocks {self.last_blocks}"
            )
        if self.tap_norm and not self.cls_insert_layer:
            raise ValueError(
                "tap_norm is SER's norm of the map after the last block without a class token, so cls_insert_layer "
                f"must be 1 or more, found {'null' if self.cls_insert_layer is None else self.cls_insert_layer}"
            )


class HeadRecipe(Frozen):
    """The head of a segmentation model (docs/semantics.md, section 6).

    kind: the type of the head. "linear" reads the backbone's last features; "dpt" fuses those of the blocks or stages
    in `taps`.
    taps: the numbers of blocks or stages in ascending order; -1 is the output of the patch embedding. As in the
    published code, the first tap has only a readout and is not fused.
    tapped: whether the unwarped output of a tapped block is read, or its warped input as in the published ViT.
    width: the number of channels of the fusion.
    """

    kind: Literal["linear", "dpt"]
    taps: tuple[Annotated[int, Field(strict=True, ge=-1)], ...] = ()
    tapped: Literal["output", "input"] = "output"
    width: Annotated[int, Field(strict=True, ge=2, le=4096)] = 256

    @model_validator(mode="after")
    def _check(self) -> HeadRecipe:
        if self.kind == "linear" and self.taps:
            raise ValueError(f"a linear head reads the last features and has no taps, found {list(self.taps)}")
        if self.kind == "dpt" and (len(self.taps) < 2 or sorted(set(self.taps)) != list(self.taps)):
            raise ValueError(f"a dpt head needs two or more taps in ascending order, found {list(self.taps)}")
        if self.tapped == "input" and -1 in self.taps:
            raise ValueError("a dpt head that taps inputs has taps from 0 on; -1 is an output, that of the embedding")
        return self


class EvaluationRecipe(Frozen):
    """The images of a proof if its user names no others.

    data: "photographs", or "digits", which are the local-scale digits of `dec_export.data.digits`.
    strength: the strength of the local changes of scale, 0.2 for ImageNet and 0.25 for digits (docs/semantics.md,
    section 7).
    """

    data: Literal["photographs", "digits"] = "photographs"
    strength: Annotated[float, Field(gt=0, le=1)] = 0.2


class Recipe(Frozen):
    """A DEC model.

    input: how an image file becomes the model's input; a null field is timm's for the backbone.
    canonicalizer: the canonicalizers; null describes a backbone without DEC, which warps nothing.
    head: the head of a segmentation model; null for classification.
    augment_layer_id, unaugment_layer_id: the places where features are warped and unwarped; -1 is the input image,
    i >= 0 is the input (for unwarping, the output) of block or stage i, and [-100] means never. Both name the same
    places if the task's output has a value for each pixel.
    deform_resolution: the size (height, width) to which features are resized before the warp, or null.
    interpolation_mode: how warps of the image and of features read between pixels. "nearest" is that of the published
    code, without aligned corners and with zeros outside; the solver's own warps are always bilinear.
    published_defects: defects of the published dense models that are computed as their weights were trained:
    "features_stay_warped" (no warp is undone) and "patches_shifted_by_one" (the head reads the tokens from the second
    prefix token to the last patch but one).
    evaluation: the images of a proof.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    task: TaskName = "classification"
    backbone: BackboneRecipe
    input: InputRecipe = InputRecipe()
    canonicalizer: AnyCanonicalizer | None
    head: HeadRecipe | None = None
    augment_layer_id: tuple[Place, ...] = (-1, 0, 1)
    unaugment_layer_id: tuple[Place, ...] = (-100,)
    deform_resolution: tuple[ImageSize, ImageSize] | None = None
    interpolation_mode: Literal["bilinear", "nearest"] = "bilinear"
    published_defects: tuple[PublishedDefect, ...] = ()
    evaluation: EvaluationRecipe = EvaluationRecipe()

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        self._check_canonicalizer()
        self._check_preparation()
        for field in ("augment_layer_id", "unaugment_layer_id"):
            places = getattr(self, field)
            if len(set(places)) < len(places) or (NEVER in places and len(places) > 1):
                raise ValueError(f"{field} must name each place once, and {NEVER} alone, found {list(places)}")
        reason = "" if self.backbone.family == CUSTOM else FAMILIES[self.backbone.family].no_unwarp_of_embedding
        if reason and -1 in self.unaugment_layer_id and self.deep_equilibrium is not None:
            raise ValueError(f"unaugment_layer_id must not have -1 with family '{self.backbone.family}': {reason}")
        self._check_task()
        self._check_evaluation()
        return self

    def _check_canonicalizer(self) -> None:
        if self.canonicalizer is not None:
            dec = self.deep_equilibrium
            seen = dec.image_size if dec is not None and dec.scale_image else self.image_size
            self.canonicalizer.check_size(seen)
            self._check_discrete()
        elif {*self.augment_layer_id, *self.unaugment_layer_id} != {NEVER}:
            raise ValueError(
                f"without a canonicalizer augment_layer_id and unaugment_layer_id must be [{NEVER}], "
                f"found {list(self.augment_layer_id)} and {list(self.unaugment_layer_id)}"
            )

    def _check_discrete(self) -> None:
        if self.discrete is None:
            return
        dense = task_named(self.task).must_unwarp
        self.discrete.check_places(self.augment_layer_id, self.unaugment_layer_id, dense=dense)
        if self.deform_resolution is not None or self.interpolation_mode != "bilinear":
            raise ValueError(
                "a discrete canonicalizer warps bilinearly at the image's own size: leave deform_resolution and "
                "interpolation_mode out"
            )

    @property
    def layers(self) -> int:
        """How many canonicalizers the model has, each with its own phi."""
        return len(self.coarse_resolutions)

    @property
    def coarse_resolutions(self) -> tuple[int, ...]:
        """The coarse resolution R of the phi of each canonicalizer."""
        if self.discrete is not None:
            return (DISCRETE_RESOLUTION,)
        return () if self.deep_equilibrium is None else self.deep_equilibrium.coarse_resolution

    @property
    def deep_equilibrium(self) -> CanonicalizerRecipe | None:
        """The recipe of deep equilibrium canonicalizers; None if the model has others or none."""
        return self.canonicalizer if isinstance(self.canonicalizer, CanonicalizerRecipe) else None

    @property
    def discrete(self) -> DiscreteCanonicalizerRecipe | None:
        """The recipe of the discrete canonicalizer; None if the model has others or none."""
        return self.canonicalizer if isinstance(self.canonicalizer, DiscreteCanonicalizerRecipe) else None

    @property
    def unwarps_output(self) -> bool:
        """Whether a discrete canonicalizer unwarps the model's output."""
        return self.discrete is not None and self.unaugment_layer_id != (NEVER,)

    @property
    def image_size(self) -> int:
        """The height and width of the model's input in pixels."""
        return self.input.image_size or self.backbone.image_size

    def _check_preparation(self) -> None:
        found = self.image_size if self.backbone.preparation is None else self.backbone.preparation.size
        if found != self.backbone.image_size:
            raise ValueError(
                f"the backbone needs images of {self.backbone.image_size} pixels, found {found}: set input.image_size, "
                "or the resize and crop of backbone.preparation"
            )

    def _check_evaluation(self) -> None:
        classes = task_named(self.task).count_classes(10)
        backbone = self.backbone
        if self.evaluation.data == "digits" and (self.image_size != 64 or backbone.num_classes != classes):
            raise ValueError(
                f"evaluation on digits needs images of 64 pixels and {classes} classes, "
                f"found {self.image_size} and {backbone.num_classes}"
            )

    def _check_task(self) -> None:
        task = task_named(self.task)
        if task.needs_head != (self.head is not None):
            found = "none" if self.head is None else f"a {self.head.kind} head"
            with_head = " or ".join(name for name in task_names() if task_named(name).needs_head)
            raise ValueError(f"task {with_head} goes with a head, and no other task does: {self.task} has {found}")
        if "patches_shifted_by_one" in self.published_defects and not task.needs_head:
            raise ValueError(
                f"patches_shifted_by_one is a defect of how a head reads tokens, and {self.task} has no head"
            )
        if "features_stay_warped" in self.published_defects:
            if not set(self.unaugment_layer_id) <= {NEVER, -1}:
                raise ValueError(
                    "features_stay_warped goes with an unaugment_layer_id of [-100] or [-1], "
                    f"found {list(self.unaugment_layer_id)}"
                )
        elif task.must_unwarp and set(self.augment_layer_id) != set(self.unaugment_layer_id):
            raise ValueError(
                f"{self.task} must unwarp what it warps: augment_layer_id and unaugment_layer_id must name the same "
                f"places, found {list(self.augment_layer_id)} and {list(self.unaugment_layer_id)}"
            )

    @staticmethod
    def named(name: str, task: str | None = None) -> Recipe:
        """Return the shipped recipe of that name, or the one for another task with the same backbone.

        Raises RecipeError, which suggests the nearest name, when there is none.
        """
        name = shipped_name(name, task)
        return validate(Recipe, shipped_document(name), f"recipe '{name}'")

    @staticmethod
    def load(path: str | Path, *, backbone: str | None = None) -> Recipe:
        """Read a recipe file, or one configuration of a published program's file by the path FILE#NAME.

        The `config.json` of a published soft equivariant model, or its folder, is read as well. `backbone` names the
        shipped recipe to whose timm model a published configuration is applied. Raises RecipeError when the file cannot
        be read, or does not describe a model that can exist.
        """
        return Recipe.imported(path, ImportOptions(backbone=backbone))[0]

    @staticmethod
    def imported(path: str | Path, options: ImportOptions) -> tuple[Recipe, tuple[str, ...]]:
        """Read what `load` reads, and sentences about what a published configuration does not show.

        Raises RecipeError as `load` does, and for options that the file has no use for.
        """
        if is_config(path):
            translated = relative_translation(path, options)
            return validate(Recipe, translated.document, f"'{config_file(path)}'"), translated.notes
        file, _, config_name = (str(path), "", "") if Path(path).is_file() else str(path).partition("#")
        document = read_document(file)
        if is_published(document):
            translated = published_translation(document, file, config_name, options)
            source = f"configuration '{config_name or file}'"
            return validate(Recipe, translated.document, source), translated.notes
        if config_name:
            raise RecipeError(f"'{file}' is one recipe, not a file of configurations: drop '#{config_name}'.")
        if options.backbone:
            raise RecipeError(f"'{file}' already names its backbone: give --backbone or --recipe, not both.")
        if options != ImportOptions():
            raise RecipeError(
                f"'{file}' is a recipe and no published configuration: set its input and backbone.preparation, and "
                "leave --image-size and --image-processor out."
            )
        return validate(Recipe, document, f"recipe '{file}'"), ()

    def to_yaml(self) -> str:
        """Return the recipe as the text of a YAML file, from which `load` reads an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
