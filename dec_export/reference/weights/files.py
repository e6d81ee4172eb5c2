"""Files of weights: what they hold, read without executing anything."""

from __future__ import annotations

import argparse
import mmap
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dec_export.errors import CheckpointError
from dec_export.reference.weights.unread import UNREAD_GLOBALS, Unread

Weights = dict[str, Tensor]

# Where training checkpoints keep their weights; averaged ones first, as timm prefers.
_ENTRIES = ("state_dict_ema", "state_dict", "model")
# Wrappers of training code that put a prefix before every key.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# Buffers that older timm releases saved and that are computed from the architecture.
_COMPUTED_BUFFERS = ("relative_position_index", "attn_mask")


def read_content(path: Path) -> Any:
    """All that a safetensors file or a PyTorch checkpoint holds, unchanged.

    Raises CheckpointError when the file is missing, truncated, or holds what could execute.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"There is no checkpoint file '{path}'.")
        # A file is what its first bytes say, whatever its name: a zip archive or a pickle is PyTorch's.
        with path.open("rb") as file:
            is_pickle = file.read(4).startswith((b"PK\x03\x04", b"\x80"))
        return _read_pickle(path) if is_pickle else load_file(path)
    except OSError as error:
        raise CheckpointError(f"Cannot read the checkpoint '{path}': {error.strerror or error}.") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"'{path}' is neither a whole safetensors file nor a PyTorch checkpoint ({error})."
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        _refuse_zip_bomb(path)
        _refuse_byte_arrays(path)
        # Training programs store their command line beside the weights; a Namespace is plain data.
        allowed = [argparse.Namespace, *UNREAD_GLOBALS]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = _plain(torch.load(path, map_location="cpu", weights_only=True))
        places = [content, *(map(content.get, _ENTRIES) if isinstance(content, Mapping) else ())]
        if any(isinstance(place, Unread) for place in places):
            raise UnpicklingError("an object stands where its weights are expected")
        return content
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


def _refuse_byte_arrays(path: Path) -> None:
    """PyTorch's unpickler would make one of any size that a file of a kilobyte names; no checkpoint has one."""
    name = b"bytearray\n"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickles = [entry for entry in archive.namelist() if entry.endswith(".pkl")]
            found = any(name in archive.read(entry) for entry in pickles)
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = content.find(name) >= 0
    if found:
        raise UnpicklingError("it makes an array of bytes")


def _plain(value: Any) -> Any:
    """A copy with plain dictionaries, as a pickled subclass may bring attributes that hide its methods."""
    return {key: _plain(item) for key, item in dict.items(value)} if isinstance(value, dict) else value


def find_state_dict(content: Any, path: Path) -> Mapping[str, Any]:
    """The state dict itself, or the one inside a training checkpoint (averaged weights first, as timm prefers).

    Raises CheckpointError when there is none; `path` names the file in it.
    """
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


def strip_prefixes(state: Mapping[str, Any]) -> Weights:
    """The tensors of a state dict, without what training code's wrappers put before every key."""
    weights = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    for prefix in _WRAPPER_PREFIXES:
        if all(key.startswith(prefix) for key in weights):
            weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return {key: value for key, value in weights.items() if not key.endswith(_COMPUTED_BUFFERS)}
