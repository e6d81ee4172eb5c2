"""Versions of installed libraries, read without importing them."""

from __future__ import annotations

from importlib import metadata, util

LIBRARIES = (
    "dec-export",
    "torch",
    "timm",
    "onnx",
    "onnxscript",
    "onnxruntime-gpu",
    "onnxruntime",
    "polygraphy",
    "tensorrt-rtx",
    "tensorrt",
    "numpy",
)


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution; None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def installed_versions(distributions: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """The versions of those of `distributions` that are installed."""
    return {name: version for name in distributions if (version := version_of(name)) is not None}


def has_package(package: str) -> bool:
    """Whether `import package` would find something."""
    try:
        return util.find_spec(package) is not None
    except ValueError:  # a package that was blocked, or loaded by other means, has no spec
        return False


def distribution_of(package: str) -> str | None:
    """The distribution that brings a package: wheels for one CUDA release have names of their own."""
    return next(iter(metadata.packages_distributions().get(package, [])), None)


def version_of_package(package: str) -> str | None:
    """The version of whichever distribution brings a package."""
    distribution = distribution_of(package)
    return None if distribution is None else metadata.version(distribution)
