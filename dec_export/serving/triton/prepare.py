"""The preparation of a bundle for a server. All options are resolved and checked before any file is written."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dec_export.bundle.store import Bundle
from dec_export.data.images import open_image, packaged_photographs, synthetic_images
from dec_export.errors import ServingError
from dec_export.serving.triton.backends import backend_named, plan_of
from dec_export.serving.triton.models import Serving
from dec_export.serving.triton.options import AUTO, TOP_K, ServingOptions, device_named
from dec_export.serving.triton.plan_check import check_plan
from dec_export.tasks import Task, task_named

_DEFAULT_BATCH = 8
_MAX_LABEL_BYTES = 1 << 20
_WARMUP_SIZE = 224


def prepare(bundle: Bundle, options: ServingOptions) -> Serving:
    """Return the settings with which the bundle is served.

    Raises:
        ServingError: if the bundle cannot be served with these options.
    """
    backend, task = backend_named(options.backend), task_named(bundle.recipe.task)
    _check_task(bundle, task, options.ensemble)
    device = device_named(options.device)
    engine, classes = backend.choose_engine(bundle, device), bundle.recipe.backbone.num_classes
    serving = Serving(
        task=task,
        name=options.name or bundle.recipe.name,
        backend=backend,
        engine=engine,
        kind=device.kind,
        instances=options.instances,
        max_batch=_choose_batch(bundle, engine, options.max_batch),
        labels=_read_labels(Path(options.labels), classes) if options.labels else [str(i) for i in range(classes)],
        top_k=min(TOP_K, classes),
        photograph=warmup_photograph(),
    )
    plan = plan_of(bundle, engine)
    if plan is not None:
        check_plan(engine, plan, options.tensorrt_version, options.compute_capability)
    return serving


def warmup_photograph() -> Image.Image:
    """Return a photograph from an installed package, or a smooth synthetic image."""
    for path in packaged_photographs()[:1]:
        return open_image(path)
    smooth = synthetic_images(_WARMUP_SIZE, 1).array[0].transpose(1, 2, 0)
    return Image.fromarray(((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255).astype("uint8"))


def _check_task(bundle: Bundle, task: Task, ensemble: str) -> None:
    if ensemble not in (AUTO, task.ensemble):
        raise ServingError(
            f"'{bundle.path}' is a model of {task.name}, which needs the ensemble '{task.ensemble}', "
            f"not '{ensemble}': leave --ensemble out."
        )
    task.check_served(bundle.recipe.backbone.num_classes)


def _choose_batch(bundle: Bundle, engine: str, wanted: int | None) -> int:
    plan = plan_of(bundle, engine)
    if plan is None:
        return wanted or _DEFAULT_BATCH
    smallest, _, largest = plan.options.batch
    if smallest != 1:
        raise ServingError(
            f"The plan accepts batches of at least {smallest} images, but the server also sends single images: "
            f"build it with --batch 1,{largest},{largest}."
        )
    if wanted is not None and wanted > largest:
        raise ServingError(f"--max-batch must be at most {largest}, for which the plan was built, found {wanted}.")
    return wanted or largest


def _read_labels(path: Path, classes: int) -> list[str]:
    try:
        if path.stat().st_size > _MAX_LABEL_BYTES:
            raise ServingError(
                f"'{path}' has more than {_MAX_LABEL_BYTES} bytes, too many for a file of labels: name another file."
            )
        labels = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except OSError as error:
        raise ServingError(f"Cannot read the labels '{path}': {error.strerror}; name another file.") from error
    except UnicodeDecodeError as error:
        raise ServingError(
            f"'{path}' is not a text file in UTF-8: write the name of one class on each line."
        ) from error
    if len(labels) != classes or not all(label.strip() for label in labels):
        blank = sum(not label.strip() for label in labels)
        raise ServingError(
            f"'{path}' must name each of the model's {classes} classes on a line, found {len(labels)} lines, "
            f"{blank} of them blank: write one name on each line."
        )
    return [label.strip() for label in labels]
