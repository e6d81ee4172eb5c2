"""Write a bundle into a model repository, completely or not at all, after a check and without overwriting models."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dec_export.bundle.store import Bundle, describe_file
from dec_export.errors import BundleError, ServingError
from dec_export.gpu import find_gpu
from dec_export.serving.triton.backends import plan_of
from dec_export.serving.triton.config import Version
from dec_export.serving.triton.journal import Journal, journal, locked
from dec_export.serving.triton.layout import CONFIG, RECORD, Content, to_json
from dec_export.serving.triton.models import ServedModel, Serving, served_models
from dec_export.serving.triton.options import ServingOptions
from dec_export.serving.triton.prepare import prepare
from dec_export.serving.triton.readme import readme, run_script
from dec_export.serving.triton.record import Needs, other_records, read_record, record_of


@dataclass(frozen=True)
class Written:
    """The result of `write_repository`.

    Attributes:
        repository: the folder of the repository.
        versions: the version of each model, by its name.
        readme, run_script: the files beside the repository.
        notes: sentences for the user.
    """

    repository: Path
    versions: dict[str, int]
    readme: Path
    run_script: Path
    notes: list[str]


def write_repository(bundle: Bundle, repository: str | Path, options: ServingOptions | None = None) -> Written:
    """Write a bundle into a model repository. If its models are there already, they get a new version.

    Raises:
        ServingError: if the bundle cannot be served with these options, or the repository cannot be written. Nothing is
            written then.
        BundleError: if the bundle is altered while it is copied.
    """
    options = ServingOptions() if options is None else options
    root = Path(repository).resolve()
    serving = prepare(bundle, options)
    models = _configured(bundle, serving)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(root.parent):
            _check_existing(root, models)
            return _write(bundle, root, models, serving, options.min_server)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise ServingError(
                f"'{root}' is a mount point, into which files beside it cannot be moved: name a folder inside it."
            ) from error
        raise ServingError(
            f"Cannot write the repository '{root}': {error.strerror or error} ('{error.filename or root}'); make it "
            "writable, or choose another --repository."
        ) from error


def _configured(bundle: Bundle, serving: Serving) -> list[ServedModel]:
    try:
        return served_models(bundle, serving)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        remedy = ": choose another --name" if where == "name" else ""
        raise ServingError(f"The configuration cannot be written ({where}: {first['msg']}){remedy}.") from error


def _check_existing(root: Path, models: Sequence[ServedModel]) -> None:
    if root.exists() and not root.is_dir():
        raise ServingError(f"'{root}' is not a folder: choose another --repository.")
    for model in models:
        folder = root / model.name
        record = read_record(folder)
        if os.path.lexists(folder) and (record is None or record.interface != model.config.interface()):
            raise ServingError(
                f"The repository has a model '{model.name}' already, which takes or gives other tensors, runs on "
                "another backend, or was not written by dec-export: choose another --name."
            )


def _next_version(root: Path, models: Sequence[ServedModel]) -> int:
    folders = (root / model.name for model in models)
    found = [int(p.name) for folder in folders if folder.is_dir() for p in folder.iterdir() if p.name.isdecimal()]
    return max(found, default=0) + 1


def _write(bundle: Bundle, root: Path, models: Sequence[ServedModel], serving: Serving, min_server: Version) -> Written:
    version = _next_version(root, models)
    needs = Needs.of([*other_records(root, models), *(record_of(model, version) for model in models)])
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
    """Return notes for the user about facts that do not prevent serving."""
    notes = []
    if bundle.manifest.gate != "pass":
        notes.append(
            f"The bundle's gate is '{bundle.manifest.gate}': prove it with dec-export parity before serving it."
        )
    if plan_of(bundle, serving.engine) is not None and find_gpu() is None:
        notes.append(
            "This machine has no GPU, so the plan was not compared with the server's: name these with "
            "--tensorrt-version and --compute-capability; a model whose plan does not fit them does not load."
        )
    return notes


def _beside(model: ServedModel, version: int, min_server: Version) -> dict[str, bytes]:
    return {
        **model.side_files,
        RECORD: to_json(record_of(model, version)),
        CONFIG: model.config.text(min_server).encode(),
    }


@contextlib.contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """Give a temporary folder beside the repository, where no server looks for models."""
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
    """Check the hashes of the copies, because a bundle may be altered while it is copied."""
    for model in models:
        for name, content in model.version_files.items():
            copied = staging / model.name / str(version) / name
            if isinstance(content, Path) and describe_file(copied) != bundle.manifest.files[content.name]:
                raise BundleError(f"'{content}' is not the file that the manifest describes: build the bundle again.")


def _publish(staging: Path, root: Path, models: Sequence[ServedModel], version: int, changes: Journal) -> None:
    """Move all files into the repository: new models first, then files of models that the server may have loaded."""
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
    """Move the files beside the configuration, and then the configuration, which the server watches for changes."""
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == CONFIG):
        place = target / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        changes.replace(path, place)
