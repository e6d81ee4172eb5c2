"""Recipes: what a DEC model is made of, validated and frozen.

A recipe is a YAML file. The ones that ship lie in `models/`; the configuration file of the published training
code (`adapter_config.yaml`) is read as well, by the name of the configuration in it.
"""

from __future__ import annotations

import difflib
import itertools
import reprlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dec_export.errors import RecipeError
from dec_export.tasks import task_named, task_names

MAX_RECIPE_BYTES = 1 << 20
# Aliases let a small YAML file stand for a huge document; a recipe has a few dozen values.
_MAX_VALUES = 10_000

Family = Literal["vit", "beit", "swin", "resnet", "custom"]
Layout = Literal["tokens", "channels_last", "channels_first"]
ImageSize = Annotated[int, Field(strict=True, ge=1, le=4096)]
ChannelCount = Annotated[int, Field(strict=True, ge=1, le=4096)]
WindowSize = Annotated[int, Field(strict=True, ge=1, le=255)]
# Sizes alone: other arguments of timm read files or reach the network, which a recipe may not.
TimmArgument = Literal["patch_size", "embed_dim", "depth", "num_heads"]
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


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


ModulePath = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.\w+)*$", max_length=200)]


class InsertionRecipe(_Frozen):
    """Where a timm model's features are.

    stages: path of the list of modules that are the places 0, 1, ..., such as "blocks"; or the modules' own paths.
    embedding: path of the module whose output is unwarped at place -1; null when the model never visits -1.
    layout: tokens (B, prefix + h w, C), channels_last (B, h, w, C) or channels_first (B, C, h, w).
    resizes_image: whether `deform_resolution` holds for the image at place -1 too.
    """

    stages: ModulePath | tuple[ModulePath, ...]
    embedding: ModulePath | None
    layout: Layout
    resizes_image: bool = False


class BackboneRecipe(_Frozen):
    """Which timm model carries the canonicalizer.

    timm: architecture, with the pretrained tag after a dot when there is one.
    family: how features are laid out; `vit` covers ViT, DeiT, DINOv2 and whatever shares their forward pass. A model of
    none of them is `custom`, and says by `insertion` where its features are.
    image_size: height and width of the model's input in pixels.
    timm_args: sizes that differ from those of timm's architecture, for a model of one's own.
    cls_insert_layer: block before which the class token joins the patch tokens (SER, arXiv 2603.06693); 0 is the usual
    place, null leaves the model as timm has it. position_embedding: "learned", or "sincos2d", fixed as in MoCo v3.
    last_blocks: the head reads the class tokens of that many last blocks (linear evaluation).
    """

    timm: Annotated[str, Field(min_length=1)]
    family: Family
    image_size: ImageSize = 224
    num_classes: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 1000
    insertion: InsertionRecipe | None = None
    timm_args: dict[TimmArgument, ChannelCount] = {}
    cls_insert_layer: Annotated[int, Field(strict=True, ge=0)] | None = None
    position_embedding: Literal["learned", "sincos2d"] = "learned"
    last_blocks: Annotated[int, Field(strict=True, ge=1, le=64)] = 1

    @model_validator(mode="after")
    def _check(self) -> BackboneRecipe:
        late = self.cls_insert_layer is not None
        if late and self.family != "vit":
            raise ValueError(f"cls_insert_layer goes with family 'vit' and with no other, found family '{self.family}'")
        if not late and (self.position_embedding != "learned" or self.last_blocks != 1):
            raise ValueError("position_embedding and last_blocks go with cls_insert_layer; set it, to 0 at least")
        if (self.family == "custom") != (self.insertion is not None):
            raise ValueError(f"insertion goes with family 'custom' and with no other, found family '{self.family}'")
        return self


class CanonicalizerRecipe(_Frozen):
    """Hyperparameters of the canonicalizers; one for each entry of `coarse_resolution`.

    coarse_resolution: R of each canonicalizer; at least 4, because the smoothing reflects two of R-1 columns.
    channels, kernel_sizes, pool_rates: the residual blocks; channels start at 3.
    image_size: height and width in pixels to which the image is resized for the canonicalizers.
    scale_image: resize and normalise the image for the canonicalizers (`dem_image_scale` of the published code).
    max_iter: iterates of the Anderson solver, the two plain ones included.
    """

    coarse_resolution: Annotated[tuple[Annotated[int, Field(strict=True, ge=4, le=64)], ...], Field(min_length=1)]
    channels: Annotated[tuple[ChannelCount, ...], Field(min_length=2)] = (3, 64, 128)
    kernel_sizes: tuple[WindowSize, ...] = (5, 3)
    pool_rates: tuple[WindowSize, ...] = (4, 2)
    image_size: ImageSize = 224
    scale_image: bool = True
    max_iter: Annotated[int, Field(strict=True, ge=3, le=64)] = 5

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


class HeadRecipe(_Frozen):
    """The head of a segmentation model (docs/semantics.md, section 6).

    kind: "linear" reads the backbone's last features; "dpt" fuses those of the blocks or stages in `taps`, given from
    the shallowest on. Of the first tap only the readout is there: as published, the fusion ends before it.
    tapped: whether a tapped block's output is read, unwarped, or its input, warped, as in the published ViT.
    width: channels of the fusion.
    """

    kind: Literal["linear", "dpt"]
    taps: tuple[Annotated[int, Field(strict=True, ge=0)], ...] = ()
    tapped: Literal["output", "input"] = "output"
    width: Annotated[int, Field(strict=True, ge=2, le=4096)] = 256

    @model_validator(mode="after")
    def _check(self) -> HeadRecipe:
        if self.kind == "linear" and self.taps:
            raise ValueError(f"a linear head reads the last features and has no taps, found {list(self.taps)}")
        if self.kind == "dpt" and (len(self.taps) < 2 or sorted(set(self.taps)) != list(self.taps)):
            raise ValueError(f"a dpt head needs two or more taps in ascending order, found {list(self.taps)}")
        return self


class EvaluationRecipe(_Frozen):
    """What a model is proved on, beside the images that its user names.

    data: "photographs", or "digits", the local-scale digits of `dec_export.data.digits`.
    strength: of the local changes of scale (docs/semantics.md, section 7): 0.2 for ImageNet, 0.25 for digits.
    """

    data: Literal["photographs", "digits"] = "photographs"
    strength: Annotated[float, Field(gt=0, le=1)] = 0.2


class Recipe(_Frozen):
    """A DEC model.

    canonicalizer: null is a backbone alone, which warps nothing.
    augment_layer_id, unaugment_layer_id: places where features are warped and unwarped; -1 is the input
    image, i >= 0 the input (output) of block or stage i; [-100] means never. They are the same places if the task's
    output lies over the image.
    deform_resolution: (height, width) to which features are resized around the warp, or null.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    task: TaskName = "classification"
    backbone: BackboneRecipe
    canonicalizer: CanonicalizerRecipe | None
    head: HeadRecipe | None = None
    augment_layer_id: tuple[Place, ...] = (-1, 0, 1)
    unaugment_layer_id: tuple[Place, ...] = (-100,)
    deform_resolution: tuple[ImageSize, ImageSize] | None = None
    evaluation: EvaluationRecipe = EvaluationRecipe()

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        self._check_canonicalizer()
        for field in ("augment_layer_id", "unaugment_layer_id"):
            places = getattr(self, field)
            if len(set(places)) < len(places) or (NEVER in places and len(places) > 1):
                raise ValueError(f"{field} must name each place once, and {NEVER} alone, found {list(places)}")
        self._check_task()
        self._check_evaluation()
        return self

    def _check_canonicalizer(self) -> None:
        if self.canonicalizer is not None:
            scaled = self.canonicalizer.scale_image
            self.canonicalizer.check_size(self.canonicalizer.image_size if scaled else self.backbone.image_size)
        elif {*self.augment_layer_id, *self.unaugment_layer_id} != {NEVER}:
            raise ValueError(
                f"without a canonicalizer augment_layer_id and unaugment_layer_id must be [{NEVER}], "
                f"found {list(self.augment_layer_id)} and {list(self.unaugment_layer_id)}"
            )

    @property
    def layers(self) -> int:
        """How many canonicalizers the model has, each with its own phi."""
        return 0 if self.canonicalizer is None else len(self.canonicalizer.coarse_resolution)

    def _check_evaluation(self) -> None:
        classes = task_named(self.task).count_classes(10)
        backbone = self.backbone
        if self.evaluation.data == "digits" and (backbone.image_size != 64 or backbone.num_classes != classes):
            raise ValueError(
                f"evaluation on digits needs images of 64 pixels and {classes} classes, "
                f"found {backbone.image_size} and {backbone.num_classes}"
            )

    def _check_task(self) -> None:
        task = task_named(self.task)
        if task.needs_head != (self.head is not None):
            found = "none" if self.head is None else f"a {self.head.kind} head"
            with_head = " or ".join(name for name in task_names() if task_named(name).needs_head)
            raise ValueError(f"task {with_head} goes with a head, and no other task does: {self.task} has {found}")
        if task.must_unwarp and set(self.augment_layer_id) != set(self.unaugment_layer_id):
            raise ValueError(
                f"{self.task} must unwarp what it warps: augment_layer_id and unaugment_layer_id must name the same "
                f"places, found {list(self.augment_layer_id)} and {list(self.unaugment_layer_id)}"
            )

    @staticmethod
    def named(name: str, task: str | None = None) -> Recipe:
        """The shipped recipe of that name, or the one that does another task with the same backbone.

        RecipeError suggests the nearest name when there is none.
        """
        known = shipped_recipes()
        suffix = "" if task is None else task_named(task).recipe_suffix
        if name in known and not name.endswith(suffix):
            name += suffix
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
            raise RecipeError(f"Unknown backbone '{name}'.{hint} Known backbones: {', '.join(known)}.")
        return _validate(_parse_yaml(known[name].read_text(), name), f"recipe '{name}'")

    @staticmethod
    def load(path: str | Path, *, backbone: str | None = None) -> Recipe:
        """Read a recipe file, or one configuration of a published `adapter_config.yaml` as FILE#NAME.

        `backbone` names the shipped recipe whose timm model a published configuration is applied to.
        """
        file, _, config_name = (str(path), "", "") if Path(path).is_file() else str(path).partition("#")
        document = _parse_yaml(_read_text(Path(file)), file)
        if "backbone" not in document and ("model_name" in document or _configurations(document)):
            return _from_published(document, file, config_name, backbone)
        if config_name:
            raise RecipeError(f"'{file}' is one recipe, not a file of configurations: drop '#{config_name}'.")
        if backbone:
            raise RecipeError(f"'{file}' already names its backbone: give --backbone or --recipe, not both.")
        return _validate(document, f"recipe '{file}'")

    def to_yaml(self) -> str:
        """The recipe as a YAML file that `load` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def shipped_recipes() -> dict[str, Any]:
    """Names of the recipes that ship with dec-export, in order, each with its file."""
    files = resources.files("dec_export_models").iterdir()
    return {f.name[: -len(".yaml")]: f for f in sorted(files, key=lambda f: f.name) if f.name.endswith(".yaml")}


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(f"'{path}' is larger than {MAX_RECIPE_BYTES} bytes: that is no recipe.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"Cannot read the recipe '{path}': {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"'{path}' is not a text file in UTF-8: a recipe is a YAML file.") from error


class _RecipeLoader(yaml.SafeLoader):
    """A safe loader in which merge keys cannot multiply a mapping without end."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MAX_VALUES:
            raise yaml.constructor.ConstructorError(None, None, "merge keys repeat too much", node.start_mark)


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        document = yaml.load(text, _RecipeLoader)  # noqa: S506 - a subclass of SafeLoader
    # PyYAML lets whatever int(), datetime and the like raise on a bad scalar pass through.
    except (yaml.YAMLError, RecursionError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise RecipeError(f"'{source}' is not valid YAML{line}: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(document, dict):
        kind = "nothing" if document is None else f"a {type(document).__name__}"
        raise RecipeError(f"'{source}' holds {kind}, expected a mapping of recipe fields.")
    return document


def _validate(document: dict[str, Any], source: str) -> Recipe:
    try:
        # YAML has lists where the recipe has tuples; everything else must already have its type.
        return Recipe.model_validate(_lists_to_tuples(document, itertools.count()))
    except ValidationError as error:
        raise RecipeError(f"{source}: {'; '.join(_sentence(e) for e in error.errors()[:3])}.") from error
    except RecursionError as error:
        raise RecipeError(f"{source} contains itself: a recipe has no cycles.") from error


def _lists_to_tuples(value: Any, visited: Iterator[int]) -> Any:
    if next(visited) > _MAX_VALUES:
        raise RecipeError(f"The recipe's aliases stand for more than {_MAX_VALUES} values: write them out.")
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item, visited) for key, item in value.items()}
    return tuple(_lists_to_tuples(item, visited) for item in value) if isinstance(value, list) else value


def _sentence(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown field '{field}'"
    if error["type"] == "missing":
        return f"field '{field}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if error["type"] != "value_error":
        # YAML writes lists where the recipe has tuples.
        message = message.replace("valid tuple", "list") + f", found {reprlib.repr(error['input'])}"
    return f"field '{field}': {message}" if field else message


# --- the published configuration file -------------------------------------------------------------------

# The shipped recipe whose timm model stands for each `model_name` of the published configurations.
_PUBLISHED_BACKBONES = {"swin": "swin_t", "vit": "vit_little", "deit": "deit_t", "beit": "beit_b"}


def _configurations(document: dict[str, Any]) -> list[str]:
    return [
        name for name, value in document.items() if isinstance(value, dict) and "adapter_coarse_resolution" in value
    ]


def _from_published(document: dict[str, Any], file: str, config_name: str, backbone: str | None) -> Recipe:
    config = document if "model_name" in document else _choose_configuration(document, file, config_name)
    base = Recipe.named(backbone or _published_backbone(config, file))
    return _validate(_translate(config, base), f"configuration '{config_name or file}'")


def _choose_configuration(document: dict[str, Any], file: str, config_name: str) -> dict[str, Any]:
    usable = [name for name in _configurations(document) if document[name].get("do_adaptation")]
    if config_name not in usable:
        found = f"'{config_name}' is none of them" if config_name else "none was named"
        raise RecipeError(
            f"'{file}' holds several configurations and {found}: write --recipe {file}#NAME "
            f"with NAME one of {', '.join(usable) or '(no configuration in it uses DEC)'}."
        )
    chosen: dict[str, Any] = document[config_name]
    return chosen


def _published_backbone(config: dict[str, Any], file: str) -> str:
    name = config.get("model_name")
    if not isinstance(name, str) or name not in _PUBLISHED_BACKBONES:
        raise RecipeError(
            f"'{file}' has model_name {name!r}, expected one of {', '.join(_PUBLISHED_BACKBONES)}: "
            "name the model with --backbone."
        )
    return _PUBLISHED_BACKBONES[name]


def _translate(config: dict[str, Any], base: Recipe) -> dict[str, Any]:
    if config.get("interpolation_mode", "bilinear") != "bilinear":
        raise RecipeError(f"interpolation_mode must be bilinear, found {config['interpolation_mode']!r}.")
    if not config.get("deep_equlibrium_mode", True):
        raise RecipeError("deep_equlibrium_mode is off: only the deep equilibrium canonicalizer can be exported.")
    layers, blocks = config.get("num_phi_layers"), config.get("adapter_num_layers")
    resolution, deform = config.get("adapter_coarse_resolution"), config.get("deform_resolution")
    return {
        "name": base.name,
        "task": base.task,
        "head": base.head and base.head.model_dump(),
        "evaluation": base.evaluation.model_dump(),
        "backbone": base.backbone.model_dump(),
        "canonicalizer": {
            "coarse_resolution": _head(resolution, layers),
            "channels": config.get("adapter_channels"),
            "kernel_sizes": _head(config.get("adapter_filter_size"), blocks),
            "pool_rates": _head(config.get("adapter_pool_rate"), blocks),
            "scale_image": config.get("dem_image_scale", True),
            "max_iter": config.get("inner_epochs"),
        },
        "augment_layer_id": config.get("augment_layer_id"),
        "unaugment_layer_id": config.get("unaugment_layer_id"),
        "deform_resolution": None if deform in (None, "None") else deform,
    }


def _head(values: Any, count: Any) -> Any:
    return values[:count] if isinstance(values, list) and isinstance(count, int) else values
