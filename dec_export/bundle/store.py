"""The bundle: a folder that holds one proven model, and that is written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any  # values of JSON

from pydantic import ValidationError

from dec_export.bundle.manifest import SCHEMA_VERSION, FileEntry, Manifest
from dec_export.bundle.plan_header import read_plan_version
from dec_export.data.preprocessing import Preprocessing
from dec_export.errors import BundleError, EngineError
from dec_export.files import umask, write_atomically
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel, create_reference
from dec_export.reference.weights.checkpoint import file_sha256
from dec_export.reference.weights.files import read_safetensors, strip_prefixes
from dec_export.reference.weights.fitting import load_weights

MANIFEST = "manifest.json"
RECIPE = "recipe.yaml"
MODEL = "model.onnx"
WEIGHTS = "weights.safetensors"
PARITY = "parity.json"
REPORT = "parity.html"
_MAX_MANIFEST_BYTES = 1 << 20


class Bundle:
    """A verified bundle on disk."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @staticmethod
    def load(path: str | Path) -> Bundle:
        """Open a bundle. Its manifest and the size and hash of every file are checked; no model is read.

        Raises BundleError when it is incomplete, altered, or written by another version of the schema.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        _verify_plans(folder, manifest)
        for name, entry in manifest.files.items():
            _verify_file(folder / name, entry)
        plans = {name for entry in manifest.plans.values() for name in entry.files}
        missing = {RECIPE, MODEL, WEIGHTS, *plans} - set(manifest.files)
        if missing:
            raise BundleError(f"The manifest of '{folder}' lists no {', '.join(sorted(missing))}: build it again.")
        same_size = manifest.preprocessing.size == manifest.recipe.image_size
        _refuse_unlisted(folder, manifest)
        if Recipe.load(folder / RECIPE) != manifest.recipe or not same_size:
            raise BundleError(f"The manifest of '{folder}' does not fit its {RECIPE}: build it again.")
        return Bundle(folder, manifest)

    @property
    def onnx_path(self) -> Path:
        """The ONNX file."""
        return self.path / MODEL

    @property
    def recipe(self) -> Recipe:
        """The recipe that the bundle was built from."""
        return self.manifest.recipe

    @property
    def tap(self) -> int | None:
        """The block or stage whose feature map is an output of the model, or None."""
        return self.manifest.forms.tap

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that turns an image into the model's input."""
        return self.manifest.preprocessing

    @property
    def parity(self) -> dict[str, Any] | None:
        """The content of `parity.json`, or None when no engine was run."""
        if PARITY not in self.manifest.files:
            return None
        report: dict[str, Any] = json.loads((self.path / PARITY).read_text(encoding="utf-8"))
        return report

    def verify(self, name: str) -> None:
        """Check the size and the hash of one file again.

        Raises BundleError when the file was altered since the bundle was opened.
        """
        _verify_plans(self.path, self.manifest)
        _verify_file(self.path / name, self.manifest.files[name])

    def reference(self) -> DecModel:
        """Return the float32 reference with the weights from which the bundle was built."""
        model = create_reference(self.recipe)
        weights = self.path / WEIGHTS
        load_weights(model, strip_prefixes(read_safetensors(weights)), weights)
        return model


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Return the size and the hash of every file in a folder."""
    return {path.name: describe_file(path) for path in sorted(folder.iterdir())}


def describe_file(path: Path) -> FileEntry:
    """Return the size and the hash of one file."""
    return FileEntry(size=path.stat().st_size, sha256=file_sha256(path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of the bundle in `folder`, and replace an earlier one."""
    write_json(folder / MANIFEST, manifest.dump())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one indented JSON object; a reader sees either the whole new file or the earlier one."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        if not path.is_file():
            raise BundleError(f"'{folder}' is not a bundle: it has no {MANIFEST}; name a folder that build wrote.")
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(
                f"'{path}' has more than {_MAX_MANIFEST_BYTES} bytes, too many for a manifest: build the bundle again."
            )
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"'{folder}' has manifest schema {version!r}, and this version of dec-export reads {SCHEMA_VERSION}: "
                "build it again or use the version that wrote it."
            )
        return Manifest.model_validate_json(text)
    except (ValueError, RecursionError) as error:
        detail = _first_error(error) if isinstance(error, ValidationError) else str(error)
        raise BundleError(f"'{path}' is not a valid manifest ({detail}): build the bundle again.") from error
    except OSError as error:
        raise BundleError(
            f"Cannot read '{path}': {error.strerror}; make it readable, or build the bundle again."
        ) from error


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"


def _verify_plans(folder: Path, manifest: Manifest) -> None:
    """Check the plans by their headers, because the header of a wrong plan explains more than a wrong hash does."""
    for name, plan in manifest.plans.items():
        if (folder / plan.file).is_file():
            try:
                read_plan_version(folder / plan.file, name)
            except EngineError as error:
                raise BundleError(str(error)) from error


def _refuse_unlisted(folder: Path, manifest: Manifest) -> None:
    """Raise BundleError for a file without a hash in the manifest, because it could hold external weights or code."""
    unlisted = sorted({path.name for path in folder.iterdir()} - {MANIFEST, *manifest.files})
    if unlisted:
        raise BundleError(
            f"'{folder / unlisted[0]}' is not listed in the bundle's {MANIFEST}, so it cannot be checked: move it "
            "out of the bundle."
        )


def _verify_file(path: Path, entry: FileEntry) -> None:
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"The bundle's file '{path}' is missing, or a link: build the bundle again.")
    size = path.stat().st_size
    if size != entry.size:
        raise BundleError(
            f"'{path}' should have {entry.size} bytes and has {size}: it was altered or cut short, so copy or build "
            "the bundle again."
        )
    if file_sha256(path) != entry.sha256:
        raise BundleError(
            f"'{path}' does not have the hash in the manifest: it was altered, so copy or build the bundle again."
        )


@contextlib.contextmanager
def writing_bundle(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `out`. It becomes `out` when the block succeeds, and is deleted otherwise.

    Raises BundleError before the block when `out` exists (with `force`, a bundle or an empty folder is replaced) or
    when its parent cannot be written, and after the block when the disk is full.
    """
    check_target(out, force=force)
    staging = _make_staging(out)
    try:
        yield staging
        _publish(staging, out, force=force)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BundleError(
                f"The disk that holds '{out}' is full: free some space and build again; nothing was kept."
            ) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_target(out: Path, *, force: bool) -> None:
    """Raise BundleError when `out` exists, unless `force` is set and `out` is a bundle or an empty folder."""
    if not os.path.lexists(out):
        return
    if Path.cwd().is_relative_to(out.resolve()):
        raise BundleError(f"'{out}' is, or holds, the current folder, which cannot be replaced: choose another --out.")
    replaceable = out.is_dir() and not out.is_symlink() and (not any(out.iterdir()) or (out / MANIFEST).is_file())
    if not replaceable:
        raise BundleError(f"'{out}' exists and is not a bundle, so it is never replaced: choose another --out.")
    if not force:
        raise BundleError(f"'{out}' exists: choose another --out, or replace it with --force.")


def check_free_space(folder: Path, needed: int) -> None:
    """Raise BundleError when the disk that holds `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BundleError(
            f"The disk that holds '{folder}' has {free / 1e6:.1f} MB free, and the bundle needs {needed / 1e6:.1f} MB: "
            "free some space."
        )


def _make_staging(out: Path) -> Path:
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=parent))
        # mkdtemp lets only the owner read the folder; a bundle gets the usual permissions.
        staging.chmod(0o777 & ~umask())
        return staging
    except OSError as error:
        raise BundleError(f"Cannot write into '{parent}': {error.strerror}; choose another --out.") from error


def _publish(staging: Path, out: Path, *, force: bool) -> None:
    """Rename `staging` to `out`, and keep a replaced bundle until the new one is in place."""
    if not force or not out.exists():
        _rename_new(staging, out)
        return
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".replaced", dir=out.absolute().parent))
    aside = folder / out.name
    try:
        os.rename(out, aside)
        _rename_new(staging, out)
    except BaseException:  # The old bundle must also be restored after an interrupt between the two renames.
        _restore(aside, out)
        folder.rmdir()
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _restore(aside: Path, out: Path) -> None:
    if not aside.exists():
        return
    if os.path.lexists(out):
        raise BundleError(f"'{out}' was written again meanwhile; the earlier bundle is kept in '{aside}'.")
    os.rename(aside, out)


def _rename_new(staging: Path, out: Path) -> None:
    try:
        os.rename(staging, out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise BundleError(
                f"'{out}' was created while this bundle was built, so nothing was written: choose another --out."
            ) from error
        raise
