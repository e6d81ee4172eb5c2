"""The versions of installed libraries, which are read without an import."""

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
    """Return the version of a distribution, or None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def installed_versions(distributions: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Return the versions of those of `distributions` that are installed."""
    return {name: version for name in distributions if (version := version_of(name)) is not None}


def has_package(package: str) -> bool:
    """Return whether `import package` would find a package."""
    try:
        return util.find_spec(package) is not None
    except ValueError:  # A package that was blocked, or loaded by other means, has no spec.
        return False


def distribution_of(package: str) -> str | None:
    """Return the distribution that contains a package; wheels for one CUDA release have names of their own."""
    return next(iter(metadata.packages_distributions().get(package, [])), None)


def version_of_package(package: str) -> str | None:
    """Return the version of the distribution that contains a package."""
    distribution = distribution_of(package)
    return None if distribution is None else metadata.version(distribution)
