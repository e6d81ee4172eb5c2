"""Weights: reading them without executing anything, fitting them to a model, and saying where they came from."""

from __future__ import annotations

import argparse
import socket
import urllib.parse
import urllib.request
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dec_export.errors import CheckpointError
from dec_export.recipe import Recipe, shipped_recipes
from dec_export.reference.model import DecModel, create_reference

Weights = dict[str, Tensor]

# Where training checkpoints keep their weights; averaged ones first, as timm prefers.
_ENTRIES = ("state_dict_ema", "state_dict", "model")
# Wrappers of training code that put a prefix before every key.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# Buffers that older timm releases saved and that are computed from the architecture alone.
_COMPUTED_BUFFERS = ("relative_position_index", "attn_mask")
_HUB_TIMEOUT_SECONDS = 5


@dataclass(frozen=True)
class WeightSource:
    """Where a model's weights came from.

    backbone, canonicalizer: "checkpoint", "pretrained" (timm) or "random" (seeded).
    file, sha256: name and hash of the checkpoint, when there is one.
    detail: one sentence for people.
    """

    backbone: Literal["checkpoint", "pretrained", "random"]
    canonicalizer: Literal["checkpoint", "random"]
    detail: str
    seed: int | None = None
    file: str | None = None
    sha256: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_reference(
    recipe: Recipe, checkpoint: Path | None = None, *, seed: int = 0, strict: bool = False
) -> tuple[DecModel, WeightSource]:
    """The recipe's model with the best weights at hand, float32, and where they came from.

    Without a checkpoint: the trained weights that ship with a recipe, if some do; else timm's pretrained backbone when
    it can be had, else seeded random weights, with seeded canonicalizers. `strict` refuses anything that did not come
    from a checkpoint.
    """
    shipped = _shipped_checkpoint(recipe) if checkpoint is None else None
    checkpoint = checkpoint or shipped
    if checkpoint is not None:
        model = create_reference(recipe, seed)
        load_weights(model, read_weights(checkpoint), checkpoint)
        detail = f"All weights come from {checkpoint.name}{', which ships with dec-export' if shipped else ''}."
        source = WeightSource("checkpoint", "checkpoint", detail, None, checkpoint.name, file_sha256(checkpoint))
        return model, source
    if strict:
        raise CheckpointError("No --checkpoint was given, and --strict-weights allows no other weights: name one.")
    model = create_reference(recipe, seed)
    reason = _load_pretrained(model, recipe)
    if reason is None:
        others = "the canonicalizers are" if recipe.head is None else "the canonicalizers and the head are"
        detail = f"The backbone has timm's pretrained weights; {others} random, seed {seed}."
        return model, WeightSource("pretrained", "random", detail, seed)
    detail = f"All weights are random, seed {seed}: {reason}."
    return model, WeightSource("random", "random", detail, seed)


def _shipped_checkpoint(recipe: Recipe) -> Path | None:
    """The trained weights of a shipped recipe; None when there are none, or the recipe is another of that name."""
    if recipe.name not in shipped_recipes() or Recipe.named(recipe.name) != recipe:
        return None
    path = Path(str(resources.files("dec_export_models") / f"{recipe.name}.safetensors"))
    return path if path.is_file() else None


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_weights(path: Path) -> Weights:
    """The tensors of a safetensors file or of a PyTorch state dict, under the published models' keys.

    Raises CheckpointError when the file is missing, truncated, or holds anything but plain tensors and numbers.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"There is no checkpoint file '{path}'.")
        # A file is what its first bytes say, whatever its name: a zip archive or a pickle is PyTorch's.
        with path.open("rb") as file:
            is_pickle = file.read(4).startswith((b"PK\x03\x04", b"\x80"))
        content = _read_pickle(path) if is_pickle else load_file(path)
    except OSError as error:
        raise CheckpointError(f"Cannot read the checkpoint '{path}': {error.strerror or error}.") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"'{path}' is neither a whole safetensors file nor a PyTorch checkpoint ({error})."
        ) from error
    return _strip_prefixes(_find_state_dict(content, path))


def _read_pickle(path: Path) -> Any:
    try:
        _refuse_zip_bomb(path)
        # timm stores its command line beside the weights; a Namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise CheckpointError(
            f"'{path}' is a pickle that holds more than tensors, numbers and text; it was refused, nothing in it "
            "was executed: save model.state_dict() alone, or a safetensors file."
        ) from error
    except (CheckpointError, OSError):
        raise
    # A damaged archive makes the unpickler raise whatever its bytes lead it to. PyTorch's own messages stay out of
    # this one, as some advise to load the file unsafely.
    except Exception as error:
        raise CheckpointError(
            f"'{path}' is not a whole PyTorch checkpoint of tensors ({type(error).__name__} while reading it)."
        ) from error


def _refuse_zip_bomb(path: Path) -> None:
    """PyTorch stores its archives uncompressed; one that would grow when read is no checkpoint."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise CheckpointError(
            f"'{path}' unpacks to {unpacked} bytes, more than its own size: PyTorch writes no such file."
        )


def _find_state_dict(content: Any, path: Path) -> Mapping[str, Any]:
    """The state dict itself, or the one inside a training checkpoint (averaged weights first, as timm prefers)."""
    if isinstance(content, Mapping):
        for entry in _ENTRIES:
            if isinstance(content.get(entry), Mapping):
                content = content[entry]
                break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        found = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"'{path}' holds no state dict: expected a mapping from names to tensors, or one under "
            f"{', '.join(_ENTRIES)}; found {found or 'an empty mapping'}."
        )
    return content


def _strip_prefixes(state: Mapping[str, Any]) -> Weights:
    weights = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    for prefix in _WRAPPER_PREFIXES:
        if all(key.startswith(prefix) for key in weights):
            weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return {key: value for key, value in weights.items() if not key.endswith(_COMPUTED_BUFFERS)}


def published_state_dict(model: DecModel) -> Weights:
    """The model's state under the published keys: the backbone's own, `DEM.` for the canonicalizers, `decoder.`."""
    return {key.removeprefix("backbone."): value for key, value in model.state_dict().items()}


def load_weights(model: DecModel, weights: Weights, path: Path) -> None:
    """Copy weights under the published keys into the model; all must fit, or none is copied.

    Raises CheckpointError with the first differing keys and shapes.
    """
    expected = published_state_dict(model)
    differences = _differences(expected, weights)
    if differences:
        shown = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
        raise CheckpointError(f"'{path}' does not fit recipe '{model.recipe.name}': {shown}.")
    converted = {key: _convert(key, weights[key], target, path) for key, target in expected.items()}
    with torch.no_grad():
        for key, target in expected.items():
            target.copy_(converted[key])


def _convert(key: str, found: Tensor, target: Tensor, path: Path) -> Tensor:
    plain = found.layout is torch.strided and not found.is_quantized and found.device.type == "cpu"
    if not plain or found.is_floating_point() != target.is_floating_point() or found.is_complex():
        kind = f"{str(found.layout).removeprefix('torch.')} {str(found.dtype).removeprefix('torch.')}"
        raise CheckpointError(f"'{path}' holds '{key}' as {kind}, expected plain numbers like {target.dtype}.")
    converted = found.to(target.dtype)
    if not torch.isfinite(converted).all():
        raise CheckpointError(f"'{path}' holds NaN, or infinity in {target.dtype}, in '{key}'.")
    return converted


def _differences(expected: Weights, found: Weights) -> list[str]:
    canonicalizes, has_canonicalizer = (any(key.startswith("DEM.") for key in keys) for keys in (expected, found))
    if canonicalizes and not has_canonicalizer:
        return ["it has no canonicalizer (no key starts with 'DEM.'), only a backbone"]
    missing = [f"'{key}' {_shape(expected[key])} is missing" for key in expected if key not in found]
    extra = [f"'{key}' {_shape(found[key])} is not expected" for key in found if key not in expected]
    shapes = [
        f"'{key}' is {_shape(found[key])}, expected {_shape(value)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    return shapes + missing + extra


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _load_pretrained(model: DecModel, recipe: Recipe) -> str | None:
    """Load timm's pretrained weights into the backbone; returns why that was not possible, or None."""
    cfg = timm.get_pretrained_cfg(recipe.backbone.timm)
    if cfg is None or not cfg.has_weights:
        return f"timm has no pretrained weights for {recipe.backbone.timm}"
    if recipe.head is None and cfg.num_classes != recipe.backbone.num_classes:
        return f"timm's pretrained weights have {cfg.num_classes} classes, not {recipe.backbone.num_classes}"
    if recipe.backbone.timm_args:
        return f"the recipe changes the sizes of timm's {recipe.backbone.timm}"
    if not _is_cached(cfg.hf_hub_id) and not _hub_answers():
        return "timm's pretrained weights are not cached and the model hub cannot be reached"
    try:
        without_classifier: dict[str, Any] = {} if recipe.head is None else {"num_classes": 0}
        pretrained = timm.create_model(recipe.backbone.timm, pretrained=True, **without_classifier)
    except (OSError, RuntimeError, ValueError) as error:
        return f"timm's pretrained weights could not be loaded ({type(error).__name__})"
    model.backbone.load_state_dict(pretrained.state_dict())
    return None


def _is_cached(hub_id: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return hub_id is not None and isinstance(try_to_load_from_cache(hub_id, "model.safetensors"), str)


def _hub_answers() -> bool:
    """Whether the model hub answers quickly; its own client would retry for most of a minute first."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    # Behind a proxy, it is the proxy that must answer.
    address = urllib.parse.urlsplit(urllib.request.getproxies().get("https", constants.ENDPOINT))
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname or "", port), timeout=_HUB_TIMEOUT_SECONDS):
            return True
    except (OSError, ValueError):
        return False
