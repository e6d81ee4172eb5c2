"""Write a bundle into a model repository: checked first, nothing overwritten, nothing half there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from PIL import Image
from pydantic import ValidationError

from dec_export.bundle.store import Bundle, describe_file
from dec_export.data.images import open_image, packaged_photographs, synthetic_images
from dec_export.engines.tensorrt.flavours import FLAVOURS, installed_version, why_missing
from dec_export.engines.tensorrt.plan import PlanEntry, dotted
from dec_export.errors import BundleError, ServingError
from dec_export.gpu import find_gpu
from dec_export.serving.triton.config import TESTED_SERVER, Kind, Version
from dec_export.serving.triton.journal import Journal, journal, locked
from dec_export.serving.triton.models import (
    ENSEMBLES,
    Backend,
    Content,
    ServedModel,
    Serving,
    served_models,
    shared_memory_of,
)
from dec_export.serving.triton.readme import Needs, readme, run_script

RECORD = "dec_export.json"
CONFIG = "config.pbtxt"
BACKENDS: tuple[str, ...] = get_args(Backend)
TOP_K = 5
_MAX_LABEL_BYTES = 1 << 20
_MAX_CLASSES_OF_A_MAP = 256


@dataclass(frozen=True)
class Written:
    """What was written: version of every model, by name, the files beside the repository, and notes for the user."""

    repository: Path
    versions: dict[str, int]
    readme: Path
    run_script: Path
    notes: list[str]


def write_repository(
    bundle: Bundle,
    repository: str | Path,
    *,
    backend: str = "python",
    name: str | None = None,
    instances: int = 1,
    max_batch: int | None = None,
    device: str = "gpu",
    labels: str | Path | None = None,
    ensemble: str = "auto",
    min_server: Version = TESTED_SERVER,
    tensorrt_version: str | None = None,
    compute_capability: str | None = None,
) -> Written:
    """Serve a bundle from a model repository; a bundle that is there already becomes a new version of its models.

    backend: "tensorrt" runs the bundle's plan, "onnxruntime" its ONNX file, "python" either, by a model.py of its own,
    which checks what it is given. name: of the models; the recipe's by default. max_batch: by default 8, or what the
    plan takes. labels: a file with one name a line for each class. ensemble: "classify" or "segment" must fit the
    bundle's task. tensorrt_version, compute_capability: of the server's machine; by default what is found here.
    Raises ServingError, before anything is written, when the bundle cannot be served so.
    """
    root = Path(repository).resolve()
    serving = _serving(bundle, backend, name, instances, max_batch, device, labels, ensemble)
    if serving.engine != "onnxruntime":
        entry = bundle.manifest.plans[serving.engine]  # type: ignore[index]
        _check_plan(serving, entry, tensorrt_version, compute_capability)
    try:
        models = served_models(bundle, serving)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        remedy = ": choose another --name" if where == "name" else ""
        raise ServingError(f"The configuration cannot be written ({where}: {first['msg']}){remedy}.") from error
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(root.parent):
            _check_existing(root, models)
            return _write(bundle, root, models, serving, min_server)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise ServingError(
                f"'{root}' is a mount point, and files are moved into place from beside it: name a folder inside it."
            ) from error
        raise ServingError(
            f"Cannot write the repository '{root}': {error.strerror or error} ('{error.filename or root}')."
        ) from error


def _serving(
    bundle: Bundle,
    backend: str,
    name: str | None,
    instances: int,
    max_batch: int | None,
    device: str,
    labels: str | Path | None,
    ensemble: str,
) -> Serving:
    if backend not in BACKENDS:
        raise ServingError(f"Unknown backend '{backend}', expected one of {', '.join(BACKENDS)}.")
    _check_task(bundle, ensemble)
    engine = _choose_engine(bundle, backend, device)
    classes = bundle.recipe.backbone.num_classes
    return Serving(
        name=name or bundle.recipe.name,
        backend=backend,  # type: ignore[arg-type] # one of BACKENDS
        engine=engine,
        kind=Kind.KIND_GPU if device == "gpu" else Kind.KIND_CPU,
        instances=instances,
        max_batch=_choose_batch(bundle, engine, max_batch),
        labels=_read_labels(Path(labels), classes) if labels else [str(i) for i in range(classes)],
        top_k=min(TOP_K, classes),
        photograph=_photograph(),
    )


def _check_task(bundle: Bundle, ensemble: str) -> None:
    task = bundle.recipe.task
    if ensemble not in ("auto", ENSEMBLES[task]):
        raise ServingError(
            f"'{bundle.path}' is a model of {task}, which needs the ensemble '{ENSEMBLES[task]}', not '{ensemble}': "
            "leave --ensemble out."
        )
    if task == "segmentation" and bundle.recipe.backbone.num_classes > _MAX_CLASSES_OF_A_MAP:
        raise ServingError(
            f"A class map has one byte for each pixel, and the model has {bundle.recipe.backbone.num_classes} classes, "
            f"more than {_MAX_CLASSES_OF_A_MAP}: serve its ONNX file with a postprocessing of your own."
        )


def _choose_engine(bundle: Bundle, backend: str, device: str) -> str:
    plans = bundle.manifest.plans
    if backend == "tensorrt":
        if "tensorrt" not in plans:
            other = "; its plan of TensorRT for RTX runs with --backend python" if "tensorrt-rtx" in plans else ""
            raise ServingError(
                f"'{bundle.path}' holds no TensorRT plan{other}: build it with --engine tensorrt, "
                "or serve it with --backend onnxruntime."
            )
        if device != "gpu":
            raise ServingError("The tensorrt backend needs a GPU: leave --device cpu out, or choose another --backend.")
        return "tensorrt"
    if backend == "python" and device == "gpu":
        held = [name for name in ("tensorrt", "tensorrt-rtx") if name in plans]
        if held:
            return held[0]
    if bundle.manifest.precision == "bf16" and device == "cpu":
        raise ServingError("ONNX Runtime has no bfloat16 on the CPU: serve on a GPU, or build with --precision fp32.")
    return "onnxruntime"


def _choose_batch(bundle: Bundle, engine: str, wanted: int | None) -> int:
    if wanted is not None and not 1 <= wanted <= 4096:
        raise ServingError(f"--max-batch must be from 1 to 4096, found {wanted}.")
    if engine == "onnxruntime":
        return wanted or 8
    smallest, _, largest = bundle.manifest.plans[engine].options.batch  # type: ignore[index]
    if smallest != 1:
        raise ServingError(
            f"The plan takes batches from {smallest} on, and the server sends single images too: "
            f"build it with --batch 1,{largest},{largest}."
        )
    if wanted is not None and wanted > largest:
        raise ServingError(f"--max-batch {wanted} is more than the {largest} that the plan was built for.")
    return wanted or largest


def _check_plan(serving: Serving, entry: PlanEntry, version: str | None, capability: str | None) -> None:
    """Refuse a plan that the server's TensorRT or GPU will not load, as far as it is known which those are."""
    flavour = FLAVOURS[serving.engine]
    if entry.options.version_compatible:
        raise ServingError(
            "The plan is version-compatible: it carries code that a server runs only when it is started to. "
            "Build the bundle without --version-compatible, with the TensorRT of the server's image."
        )
    if version is None and why_missing(flavour) is None:
        version = installed_version(flavour)
    if version is not None and not _same_version(version, entry.version):
        raise ServingError(
            f"The plan was built with {flavour.label} {entry.version}, the server has {version}, and a plan runs with "
            "its own version alone: build the bundle with the server's version, or choose its image by the plan's."
        )
    gpu = find_gpu()
    if capability is None and gpu is not None:
        capability = dotted(gpu.compute_capability)
        if entry.bound_to_another(flavour, gpu):
            raise ServingError(
                f"The plan was built on {entry.gpu} and runs on that GPU alone, this machine has {gpu.name}: "
                "build the bundle here, or with --hardware-compatibility."
            )
    if capability is not None and not entry.takes_capability(_parse_capability(capability)):
        raise ServingError(
            f"The plan is for GPUs of compute capability {entry.capabilities}, the server's has {capability}: "
            "build the bundle for it."
        )


def _same_version(given: str, built: str) -> bool:
    """Whether they agree in all numbers that are given; an image may name three of four."""
    return len(given.split(".")) >= 3 and all(a == b for a, b in zip(given.split("."), built.split("."), strict=False))


def _parse_capability(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(".")))
    except ValueError as error:
        raise ServingError(f"--compute-capability expects a number as in 9.0, found '{text}'.") from error


def _read_labels(path: Path, classes: int) -> list[str]:
    try:
        if path.stat().st_size > _MAX_LABEL_BYTES:
            raise ServingError(f"'{path}' is larger than {_MAX_LABEL_BYTES} bytes: that is no file of labels.")
        labels = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except OSError as error:
        raise ServingError(f"Cannot read the labels '{path}': {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ServingError(f"'{path}' is not a text file in UTF-8: labels are one name a line.") from error
    if len(labels) != classes or not all(label.strip() for label in labels):
        blank = sum(not label.strip() for label in labels)
        raise ServingError(
            f"'{path}' must name each of the model's {classes} classes on a line, found {len(labels)} lines, "
            f"{blank} of them blank."
        )
    return [label.strip() for label in labels]


def _photograph() -> Image.Image:
    """For the warmup: a real photograph where wheels bring one."""
    for path in packaged_photographs()[:1]:
        return open_image(path)
    smooth = synthetic_images(224, 1).array[0].transpose(1, 2, 0)
    return Image.fromarray(((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255).astype("uint8"))


# --- writing ---------------------------------------------------------------------------------------------------------


def _check_existing(root: Path, models: Sequence[ServedModel]) -> None:
    if root.exists() and not root.is_dir():
        raise ServingError(f"'{root}' is not a folder: choose another --repository.")
    for model in models:
        folder = root / model.name
        record = _read_record(folder)
        if os.path.lexists(folder) and (record is None or record["interface"] != model.config.interface()):
            raise ServingError(
                f"The repository has a model '{model.name}' already, which takes or gives other tensors, runs on "
                "another backend, or was not written by dec-export: choose another --name."
            )


def _read_record(folder: Path) -> dict[str, Any] | None:
    """What a model was written with; None when dec-export did not write it."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "interface" in record else None


def _next_version(root: Path, models: Sequence[ServedModel]) -> int:
    folders = (root / model.name for model in models)
    found = [int(p.name) for folder in folders if folder.is_dir() for p in folder.iterdir() if p.name.isdecimal()]
    return max(found, default=0) + 1


def _write(bundle: Bundle, root: Path, models: Sequence[ServedModel], serving: Serving, min_server: Version) -> Written:
    version = _next_version(root, models)
    needs = _needs([*_other_records(root, models), *(_record_of(model, version) for model in models)])
    text, script = root.parent / f"{root.name}-{serving.name}.md", root.parent / f"{root.name}-run.sh"
    with _staging(root) as staging:
        for model in models:
            _fill(staging / "models" / model.name / str(version), model.version_files)
            _fill(staging / "models" / model.name, _beside(model, version, min_server))
        _verify_copies(bundle, staging / "models", models, version)
        (staging / "readme").write_text(readme(bundle, serving, models, root.name, version, needs), encoding="utf-8")
        (staging / "script").write_text(run_script(needs, root.name), encoding="utf-8")
        (staging / "script").chmod(0o755)
        with journal() as changes:
            _publish(staging / "models", root, models, version, changes)
            changes.replace(staging / "readme", text)
            changes.replace(staging / "script", script)
    return Written(root, {model.name: version for model in models}, text, script, _notes(bundle, serving))


def _notes(bundle: Bundle, serving: Serving) -> list[str]:
    """What the user should know, though it hinders nothing."""
    notes = []
    if bundle.manifest.gate != "pass":
        notes.append(
            f"The bundle's gate is '{bundle.manifest.gate}': prove it with dec-export parity before serving it."
        )
    if serving.engine != "onnxruntime" and find_gpu() is None:
        notes.append(
            "No GPU is here to compare the plan with: say which the server has with --tensorrt-version and "
            "--compute-capability, or its model will refuse to load where they differ."
        )
    return notes


def _record_of(model: ServedModel, version: int) -> dict[str, Any]:
    return {
        "interface": model.config.interface(),
        "version": version,
        "shared_memory_bytes": shared_memory_of(model),
        "gpu": any(group.kind is Kind.KIND_GPU for group in model.config.instance_group),
    }


def _other_records(root: Path, models: Sequence[ServedModel]) -> Iterator[dict[str, Any]]:
    """Of the models that stand in the repository beside these."""
    names = {model.name for model in models}
    for path in root.glob(f"*/{RECORD}") if root.is_dir() else ():
        record = _read_record(path.parent)
        if path.parent.name not in names and record is not None:
            yield record


def _needs(records: Sequence[Mapping[str, Any]]) -> Needs:
    """What a server of all these models needs."""
    return Needs(
        sum(int(record.get("shared_memory_bytes", 0)) for record in records),
        any(bool(record.get("gpu")) for record in records),
    )


def _beside(model: ServedModel, version: int, min_server: Version) -> dict[str, bytes]:
    record = _record_of(model, version)
    return {
        **model.side_files,
        RECORD: (json.dumps(record, indent=1) + "\n").encode(),
        CONFIG: model.config.text(min_server).encode(),
    }


@contextlib.contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """A sibling of the repository, where no server looks."""
    folder = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".partial", dir=root.absolute().parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(folder: Path, files: Mapping[str, Content]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)


def _verify_copies(bundle: Bundle, staging: Path, models: Sequence[ServedModel], version: int) -> None:
    """A bundle may be altered while it is copied."""
    for model in models:
        for name, content in model.version_files.items():
            copied = staging / model.name / str(version) / name
            if isinstance(content, Path) and describe_file(copied) != bundle.manifest.files[content.name]:
                raise BundleError(f"'{content}' is not the file that the manifest describes: build the bundle again.")


def _publish(staging: Path, root: Path, models: Sequence[ServedModel], version: int, changes: Journal) -> None:
    """Put everything into place: what is new first, then what the server reads of models that it has."""
    root.mkdir(exist_ok=True)
    known = [model for model in models if (root / model.name).exists()]
    for model in known:
        changes.rename(staging / model.name / str(version), root / model.name / str(version))
    for model in models:
        if model not in known:
            changes.rename(staging / model.name, root / model.name)
    for model in known:
        _move_files(staging / model.name, root / model.name, changes)


def _move_files(source: Path, target: Path, changes: Journal) -> None:
    """Files beside the configuration, then the configuration, by which a server sees the change."""
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == CONFIG):
        place = target / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        changes.replace(path, place)
